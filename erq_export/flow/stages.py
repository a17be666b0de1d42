"""The stages of a run: each a function of artifacts and of its own slice of the job, kept in the store by what it was
made of. Running again, comparing methods and pricing choices are the same stages over the same store."""

import copy
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir
import torch
from torch import Tensor, nn

from erq_export.backends.machine import processor, versions
from erq_export.calibrate.known_ranges import KnownRanges, deciding
from erq_export.calibrate.loop import calibrate as find_integers
from erq_export.calibrate.rotation import rotated
from erq_export.calibrate.setting import Setting
from erq_export.contract.bundle import Bundle, Deployed
from erq_export.contract.engine_spec import EngineSpec
from erq_export.contract.manifest import MANIFEST
from erq_export.contract.parity import ParityReport
from erq_export.contract.records import FileRecord, encode, plain_of, read
from erq_export.contract.spec import Pack, Quantization
from erq_export.contract.story import Story
from erq_export.contract.targets import Target, named
from erq_export.data.calibration_set import CalibrationData
from erq_export.data.held_out import Images
from erq_export.exporters.onnx.twin import half_graph
from erq_export.exporters.onnx.write import (
    float_graph,
    lowered,
    marker_graph,
    rebound,
    save,
    save_markers,
)
from erq_export.flow.artifacts import Artifact, origin, read_manifest
from erq_export.flow.code import code_of
from erq_export.flow.engine_stage import EngineStage
from erq_export.flow.spans import KeptSpans, load_decisions, save_decisions
from erq_export.flow.store.entry import Work
from erq_export.flow.store.key import code_hash, key
from erq_export.flow.store.store import Make, Store
from erq_export.flow.ui import Ui
from erq_export.models.loading import Loaded
from erq_export.models.rebuild import reference_model
from erq_export.validate.metrics.decisions import Decisions, Progress, Spans, check_labels
from erq_export.validate.metrics.distance import relative_error
from erq_export.validate.metrics.inside import output_errors
from erq_export.validate.parity.check import check_parity
from erq_export.validate.runners import TorchRunner

PARITY = "parity.json"
DECISIONS, FIGURES, RANGES = "decisions.safetensors", "figures.json", "ranges.safetensors"
STORY = "story.json"


class Figure(FileRecord, frozen=True, kw_only=True):
    """One number about a bundle's reference beside its float model."""

    WHAT: ClassVar[str] = "figure"

    name: str
    value: float


@dataclass
class Stages:
    """The stages over one store. `device`: where models run."""

    store: Store
    ui: Ui
    device: torch.device
    _traces: dict[str, ir.Model] = field(default_factory=dict, repr=False)  # by content, read once

    def bundle(self, model: Loaded, images: CalibrationData, asked: Quantization) -> Artifact:
        """Calibrate; a run that was stopped goes on behind the last finished block. `model` stays as it is."""

        def make(work: Work) -> None:
            known = self.known_ranges(model, images, asked)
            found = find_integers(
                replace(model, model=copy.deepcopy(model.model)),
                images,
                asked,
                device=self.device,
                progress=self.ui.progress,
                checkpoints=work.checkpoints,
                known=known,
            )
            found.save(work.folder)
            self._keep_ranges(inputs, asked, known, n_sites=len(found.layers))

        inputs = self._bundle_inputs(model, images)
        return self.kept(
            "bundle", inputs, plain_of(asked), make, f"{asked.bits.brief} {asked.method} of {model.identity.name}"
        )

    def has_bundle(self, model: Loaded, images: CalibrationData, asked: Quantization) -> bool:
        """Is this calibration kept already?"""
        name = key("bundle", self._bundle_inputs(model, images), plain_of(asked), code_hash(*code_of("bundle")))
        return self.store.find("bundle", name) is not None

    def _bundle_inputs(self, model: Loaded, images: CalibrationData) -> dict[str, str]:
        boxes = (
            versions("torchvision") if model.family.name == "detector" else {}
        )  # decide what heads are calibrated on
        inputs = {"model": model.fingerprint, "images": images.fingerprint.pixels_sha256}
        return {**inputs, **self.arithmetic(), **versions("numba"), **boxes}

    def graph(self, bundle: Artifact, target: str, pack: Pack) -> Artifact:
        """Lower the trace for the target: model.onnx and manifest.json."""

        def make(work: Work) -> None:
            found = bundle.read(Bundle.load).deployed()
            made_of = origin(found, bundle.content)
            graph, manifest = lowered(self.markers(found), named(target), made_of, pack=pack)
            save(graph, work.folder / "model.onnx")
            (work.folder / MANIFEST).write_bytes(encode(manifest))

        inputs = {"bundle": bundle.content, **versions("torch", "timm", "onnx", "onnx-ir", "onnxscript")}
        return self.kept("graph", inputs, {"target": target, "pack": pack}, make, f"graph for {target}")

    def markers(self, bundle: Deployed) -> ir.Model:
        """The bundle's marker graph. Bundles of one architecture differ in values alone: the first one's trace serves all."""

        def make(work: Work) -> None:
            save_markers(marker_graph(bundle), work.folder / "markers.onnx")

        parts = {name: list(getattr(bundle, name)) for name in ("layers", "operands", "leftovers")}
        model = {"timm_name": bundle.identity.timm_name, "model_args": plain_of(bundle.identity)["model_args"]}
        inputs = versions("torch", "timm", "onnx", "onnx-ir", "onnxscript")
        trace = self.kept("trace", inputs, parts | model, make, f"trace of {bundle.identity.timm_name}")
        if trace.content not in self._traces:
            self._traces[trace.content] = trace.read(lambda folder: ir.load(folder / "markers.onnx"))
        return rebound(self._traces[trace.content], bundle) or marker_graph(bundle)

    def float_graph(self, model: Loaded) -> Artifact:
        """The float model's graph, for baselines."""

        def make(work: Work) -> None:
            fresh = copy.deepcopy(model.model)
            save(float_graph(fresh, model.identity.preprocess.input_size), work.folder / "model.onnx")

        return self._float_graph(model, "float", make)

    def twin(self, model: Loaded, target: Target) -> Artifact:
        """The same float model as a target's strongly typed FP16 graph: model.onnx and manifest.json."""

        def make(work: Work) -> None:
            fresh = copy.deepcopy(model.model)
            graph, manifest = half_graph(fresh, model.identity.preprocess.input_size, target)
            save(graph, work.folder / "model.onnx")
            (work.folder / MANIFEST).write_bytes(encode(manifest))

        return self._float_graph(model, f"float16 {target.name}", make)

    def _float_graph(self, model: Loaded, target: str, make: Make) -> Artifact:
        inputs = {"model": model.fingerprint, **versions("torch", "timm", "onnx", "onnx-ir", "onnxscript")}
        return self.kept("graph", inputs, {"target": target}, make, f"{target} graph of {model.identity.name}")

    def engine(self, graph: Artifact, target: Target, asked: EngineSpec, *, timings: bytes | None = None) -> Artifact:
        """Build the engine of a target that has a package (see `EngineStage`)."""
        stage = EngineStage(graph=graph, target=target, asked=asked, ui=self.ui, timings=timings)
        return self.kept("engine", stage.inputs(), stage.slice(), stage.make, f"engine for {target.name}")

    def parity(
        self, bundle: Artifact, graph: Artifact, pixels: Tensor, images: str, many: Images | None = None
    ) -> ParityReport:
        """Hold a graph in ONNX Runtime against the bundle's reference on `pixels`, whose hash is `images`.

        many: further images, whose decisions are compared where the whole model's noise floor says nothing.
        """

        def make(work: Work) -> None:
            found = bundle.read(Bundle.load).deployed()
            manifest = read_manifest(graph)
            report = graph.read(
                lambda folder: check_parity(
                    reference_model(found),
                    folder / "model.onnx",
                    manifest,
                    found.layers,
                    pixels,
                    bundle=bundle.content,
                    many=None if many is None else many.pixels,
                    progress=self.ui.progress,
                )
            )
            (work.folder / PARITY).write_bytes(encode(report))

        inputs = {"bundle": bundle.content, "graph": graph.content, "images": images, **self.arithmetic()}
        inputs |= versions("onnxruntime-gpu") | ({} if many is None else {"many": many.fingerprint})
        kept = self.kept("parity", inputs, {"n_images": len(pixels)}, make, "parity of a graph")
        return kept.read(lambda folder: read(ParityReport, folder / PARITY))

    def decisions(
        self, what: str, content: str, images: Images, decide: Callable[[Spans, Progress], Decisions], *, headless: bool
    ) -> Decisions:
        """What a runner makes of every image; `content` is the hash of what runs, `what` tells in what.

        `decide` is called only where nothing is kept, and goes on behind the spans that an interrupted run has kept. DataError
        where a label is beyond the model's classes.
        """

        def make(work: Work) -> None:
            found = decide(KeptSpans(work.checkpoints), partial(self.ui.progress, what))
            save_decisions(found, work.folder / DECISIONS)

        inputs = {"subject": content, "runner": what, "images": images.fingerprint, **self.arithmetic()}
        inputs |= versions("onnxruntime-gpu", "openvino")
        kept = self.kept("decisions", inputs, {"headless": headless}, make, f"decisions of {what}")
        found = kept.read(lambda folder: load_decisions(folder / DECISIONS))
        check_labels(images.labels, found.n_classes)
        return replace(found, labels=images.labels)

    def logits_error(self, bundle: Artifact, model: Loaded, images: Images) -> float:
        """‖ŷ − y‖/‖y‖ over the logits of all images: y of the float model, ŷ of the bundle's reference."""

        def error(reference: nn.Module, exact: nn.Module) -> float:
            return relative_error(TorchRunner(reference, self.device), TorchRunner(exact, self.device), images)

        return self._figure("logits_error", bundle, model, images, error)

    def deployed_error(self, bundle: Artifact, model: Loaded, images: Images) -> float:
        """Σ‖ŷ − y‖²/Σ‖y‖² of a layer's output where it stands, the layers before it quantized too: mean over the layers."""

        def error(reference: nn.Module, exact: nn.Module) -> float:
            errors = output_errors(reference.to(self.device).eval(), exact.to(self.device).eval(), images)
            return statistics.fmean(errors.values())

        return self._figure("deployed_error", bundle, model, images, error)

    def story(self, inputs: Mapping[str, str], make: Callable[[Path], None]) -> Story:
        """Where a bundle loses; `make` writes story.json into a folder, where nothing is kept for these inputs."""
        known = {**inputs, **self.arithmetic()}
        kept = self.kept("story", known, {}, lambda work: make(work.folder), "errors by depth")
        return kept.read(lambda folder: read(Story, folder / STORY))

    def _figure(
        self,
        name: str,
        bundle: Artifact,
        model: Loaded,
        images: Images,
        error: Callable[[nn.Module, nn.Module], float],
    ) -> float:
        """One number about a bundle's reference beside its float model, kept by its name."""

        def make(work: Work) -> None:
            own = bundle.read(Bundle.load)
            found = error(reference_model(own), rotated(model, own.rotated))
            (work.folder / FIGURES).write_bytes(encode(Figure(name=name, value=found)))

        inputs = {"bundle": bundle.content, "model": model.fingerprint, "images": images.fingerprint}
        kept = self.kept("figures", inputs | self.arithmetic(), {"figure": name}, make, name.replace("_", " "))
        return kept.read(lambda folder: read(Figure, folder / FIGURES)).value

    def known_ranges(self, model: Loaded, images: CalibrationData, asked: Quantization) -> KnownRanges:
        """Grids that another calibration has found on the same activations; none where none was made."""
        entry = self.store.find("ranges", self._ranges_key(self._bundle_inputs(model, images), asked))
        return KnownRanges() if entry is None else KnownRanges.load(entry.folder / RANGES, self.device)

    def _keep_ranges(self, inputs: Mapping[str, str], asked: Quantization, known: KnownRanges, *, n_sites: int) -> None:
        """For other bits and methods; a run that went on behind a checkpoint has not seen all of them."""
        if len(known.grids) >= n_sites - 1:  # the image may stay float

            def make(work: Work) -> None:
                known.save(work.folder / RANGES)

            name, what = self._ranges_key(inputs, asked), f"input ranges at a{asked.bits.a}"
            self.store.fetch("ranges", name, make, description=what).close()

    def _ranges_key(self, inputs: Mapping[str, str], asked: Quantization) -> str:
        return key("ranges", inputs, deciding(Setting.of(asked)), code_hash(*code_of("bundle")))

    def arithmetic(self) -> dict[str, str]:
        """What decides the last bits of a float sum: library, device, processor. The number of threads does not."""
        gpu = {"gpu": torch.cuda.get_device_name(self.device)} if self.device.type == "cuda" else {}
        return {**versions("torch", "timm"), "device": self.device.type, "processor": processor(), **gpu}

    def kept(self, kind: str, inputs: Mapping[str, str], asked: Any, make: Make, description: str) -> Artifact:
        """What `make` makes of these inputs, found again in the store where it was made before."""
        name = key(kind, inputs, asked, code_hash(*code_of(kind)))
        return Artifact.of(lambda: self.store.fetch(kind, name, make, description=description))
