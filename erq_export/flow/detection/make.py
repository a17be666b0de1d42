"""What a detector's bundle becomes: graphs of every part, one of the whole for ONNX Runtime, engines of every part."""

from dataclasses import dataclass, field

import onnx_ir as ir
from msgspec import structs

from erq_export.backends.machine import versions
from erq_export.contract.bundle import Bundle, Deployed
from erq_export.contract.engine_spec import EngineSpec
from erq_export.contract.manifest import MANIFEST
from erq_export.contract.output.writing import Writing
from erq_export.contract.records import encode
from erq_export.contract.spec import DeploySpec
from erq_export.contract.targets import named
from erq_export.exporters.onnx.parts import batches, body_graph, part_graphs, whole_graph
from erq_export.exporters.onnx.write import lowered, save
from erq_export.flow.artifacts import Artifact, origin
from erq_export.flow.detection.units import TRACED_BY, WHOLE, split
from erq_export.flow.measure import Made
from erq_export.flow.run import place
from erq_export.flow.stages import Stages
from erq_export.flow.store.entry import Work
from erq_export.flow.work import Course


@dataclass
class Traces:
    """The marker graphs of one bundle, traced when the first of them is wanted."""

    bundle: Deployed
    _made: dict[str, ir.Model] = field(default_factory=dict)

    def of(self, part: str) -> ir.Model:
        """Of a part by its name, or of the whole detector."""
        if part not in self._made:
            kind, canvas = split(part)
            if kind == WHOLE:
                self._made[part] = whole_graph(self.bundle, canvas)
            elif canvas is not None:
                self._made[part] = body_graph(self.bundle, canvas)
            else:
                self._made |= part_graphs(self.bundle)
        return self._made[part]


def make(
    course: Course,
    stages: Stages,
    deploy: DeploySpec,
    writing: Writing,
    bundle: Artifact,
    units: tuple[str, ...],
    *,
    engine: EngineSpec | None = None,
) -> Made:
    """Graphs and engines of these TARGET/PARTs, in the store and in the run's folder; engine: what is asked of engines, where
    that is not what the run asked. Batches are those of the parts."""
    graphs, engines = {}, {}
    traces = Traces(bundle.read(Bundle.load).deployed())
    with course.stage("export"):
        for i, unit in enumerate(units):
            course.ui.progress(f"export {unit}", i, len(units))
            graphs[unit] = _graph(stages, bundle, traces, unit, deploy)
            place(writing, unit, graphs[unit])
    for target in dict.fromkeys(unit.partition("/")[0] for unit in units):
        if named(target).package is None:
            continue
        with course.stage(f"build {target}"):
            for unit in (unit for unit in units if unit.startswith(f"{target}/")):
                kind, _ = split(unit.partition("/")[2])
                asked = structs.replace(engine or EngineSpec.of(deploy), batch=batches(kind))
                engines[unit] = stages.engine(graphs[unit], named(target), asked)
                place(writing, f"{unit}/engine", engines[unit])
    return Made(bundle=bundle, graphs=graphs, engines=engines)


def _graph(stages: Stages, bundle: Artifact, traces: Traces, unit: str, deploy: DeploySpec) -> Artifact:
    """model.onnx and manifest.json of one TARGET/PART."""
    target, _, part = unit.partition("/")

    def write(entry: Work) -> None:
        graph, manifest = lowered(
            traces.of(part), named(target), origin(traces.bundle, bundle.content), pack=deploy.pack
        )
        save(graph, entry.folder / "model.onnx")
        (entry.folder / MANIFEST).write_bytes(encode(manifest))

    inputs = {
        "bundle": bundle.content,
        **versions(*TRACED_BY),
    }
    asked = {"target": target, "part": part, "pack": deploy.pack}
    return stages.kept("part-graph", inputs, asked, write, f"graph of {part} for {target}")
