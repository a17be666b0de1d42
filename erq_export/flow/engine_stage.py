"""The stage that builds an engine: what it is made of, what was asked, and how it is made.

Equal inputs need not give equal bytes: a build times kernels, and its record says how long it took. An engine is kept by
what it was made of, so a second run finds the first one's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from msgspec import structs

from erq_export.backends.device import gpu_here
from erq_export.backends.machine import versions
from erq_export.backends.tensorrt import Package
from erq_export.contract.engine_spec import EngineSpec
from erq_export.contract.records import plain_of
from erq_export.contract.targets import Target
from erq_export.exporters.tensorrt.build import build
from erq_export.flow.artifacts import Artifact, read_manifest
from erq_export.flow.store.entry import Work
from erq_export.flow.ui import Ui


@dataclass(frozen=True, kw_only=True)
class EngineStage:
    """target: one that has a package.  timings: of an earlier build, which changes how long it takes and nothing else."""

    graph: Artifact
    target: Target
    asked: EngineSpec
    ui: Ui
    timings: bytes | None = None

    @property
    def spec(self) -> EngineSpec:
        """What was asked, less what the target does not have."""
        return self.asked if self.target.ahead_of_time else structs.replace(self.asked, capability=())

    def inputs(self) -> dict[str, str]:
        gpu = {} if self.target.ahead_of_time else {"gpu": torch.cuda.get_device_name()}
        return {"graph": self.graph.content, **gpu, **versions("tensorrt", "tensorrt-rtx-cu13")}

    def slice(self) -> Mapping[str, Any]:
        return {"target": self.target.name, **plain_of(self.spec)}

    def make(self, work: Work) -> None:
        """model.engine, plan.txt, build.log, engine.json, and timing.cache where kernels are timed."""

        def on_progress(phase: str, done: int, total: int) -> bool:
            self.ui.progress(phase, done, total)
            return True

        manifest = read_manifest(self.graph)
        self.graph.read(
            lambda folder: build(
                folder / "model.onnx",
                manifest,
                work.folder,
                package=cast(Package, self.target.package),
                asked=self.spec,
                gpu=None if self.target.ahead_of_time else gpu_here(),
                on_progress=on_progress,
                timing_cache=self.timings,
            )
        )
