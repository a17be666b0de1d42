"""The parts of a detector outside PyTorch, as in engines, with the float glue between them in torch.

Letters:  x (B, …) what a part is given: B pictures of a canvas, or what was pooled from B boxes
Engines of detectors were not yet run on a GPU, nor was the glue around them.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from erq_export.backends.tensorrt.execute import LoadedEngine
from erq_export.contract.errors import EngineError
from erq_export.exporters.onnx.parts import LEVELS
from erq_export.flow.artifacts import Artifact
from erq_export.flow.detection.units import BODY, split
from erq_export.flow.engines import MODEL_ENGINE, loaded
from erq_export.models.detectors.architecture import Size
from erq_export.models.detectors.body import Pyramid
from erq_export.models.detectors.detector import Detections, Parts, detect
from erq_export.models.detectors.framing import Framed

Run = Callable[[Tensor], Mapping[str, Tensor]]  # x → what the part gives, by name, on the device where it was computed


class Executed:
    """A detector whose parts run elsewhere. parts: by the part's name, as `units` has them, the body of every canvas; each is
    opened when it is wanted first, bodies one at a time: pictures of one canvas follow each other."""

    def __init__(
        self, parts: Mapping[str, Callable[[], Run]], canvases: tuple[Size, ...], device: torch.device
    ) -> None:
        self._make, self._device = parts, device
        self._body = {split(name)[1] or canvases[0]: name for name in parts if split(name)[0] == BODY}
        self._open: dict[str, Run] = {}

    def __call__(self, framed: Framed) -> Detections:
        body = self._body[framed.canvas]
        for other in set(self._body.values()) - {body}:
            self._open.pop(other, None)
        heads = sorted(name for name in self._make if split(name)[0] != BODY)
        parts = Parts(
            body=lambda x: _pyramid(self._run(body)(x)),
            box=[self._box(name) for name in heads if name.startswith("box")],
            mask=[self._mask(name) for name in heads if name.startswith("mask")],
        )
        given = Framed(pixels=framed.pixels.to(self._device), size=framed.size, given=framed.given)
        return detect(parts, given).cpu()

    def _run(self, name: str) -> Run:
        if name not in self._open:
            self._open[name] = self._make[name]()
        return self._open[name]

    def _box(self, name: str) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        def head(x: Tensor) -> tuple[Tensor, Tensor]:
            found = self._run(name)(x)
            return found["logits"], found["deltas"]

        return head

    def _mask(self, name: str) -> Callable[[Tensor], Tensor]:
        return lambda x: self._run(name)(x)["logits"]


def _pyramid(found: Mapping[str, Tensor]) -> Pyramid:
    maps, objectness, deltas = (tuple(found[f"{kind}.{i}"] for i in LEVELS) for kind in ("map", "objectness", "deltas"))
    return Pyramid(maps, objectness, deltas)


def in_engine(engine: LoadedEngine) -> Run:
    """x is filled up with zeros to the engine's largest batch: one shape, so that kernels are compiled and buffers made once."""
    if len(engine.signature.inputs) != 1:
        raise EngineError(f"the engine has {len(engine.signature.inputs)} inputs, not one", fix="export again")
    (given,), largest = engine.signature.inputs, engine.signature.batch[1]

    def call(x: Tensor) -> dict[str, Tensor]:
        if len(x) > largest:
            raise EngineError(f"a part is given {len(x)} rows, its engine takes {largest} at most", fix="export again")
        filled = x.new_zeros(largest, *x.shape[1:])
        filled[: len(x)] = x
        return {name: y[: len(x)].float() for name, y in engine.run({given.name: filled}).items()}

    return call


def in_engines(engines: Mapping[str, Artifact], canvases: tuple[Size, ...]) -> Executed:
    """The engines of all parts on this machine's GPU; what is refused when one is opened: `flow.engines.loaded`."""

    def opener(engine: Artifact) -> Callable[[], Run]:
        def opened() -> Run:
            torch.cuda.empty_cache()  # what torch keeps for itself is missing to the engine
            return engine.read(lambda folder: in_engine(loaded(folder / MODEL_ENGINE)))

        return opened

    parts = {part: opener(engine) for part, engine in engines.items()}
    return Executed(parts, canvases, torch.device("cuda", torch.cuda.current_device()))
