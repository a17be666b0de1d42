"""A detector's graphs as files: with faults in them, or run in the place of engines."""

from collections.abc import Callable, Collection
from pathlib import Path

import onnx_ir as ir

from erq_export.backends.onnxruntime import run, session
from erq_export.exporters.onnx.write import save
from erq_export.flow.detection.executed import Run

LOWER = 0.3  # IoU, where 0.5 is right


def unquantized(layers: Collection[str]) -> Callable[[ir.Model, Path], None]:
    """In the place of `save`: these layers get their inputs as they were before they were quantized, and manifests go on claiming
    INT8."""

    def with_fault(graph: ir.Model, path: Path) -> None:
        for node in graph.graph.all_nodes():
            if node.name and node.name.startswith(tuple(layers)) and node.op_type in ("Conv", "Gemm", "MatMul"):
                before = _producer(node)
                while before.op_type != "QuantizeLinear":
                    before = _producer(before)
                node.replace_input_with(0, before.inputs[0])
        save(graph, path)

    return with_fault


def _producer(node: ir.Node) -> ir.Node:
    assert node.inputs[0] is not None
    found = node.inputs[0].producer()
    assert found is not None
    return found


def suppress_more(path: Path) -> None:
    """Of a whole detector's graph: boxes of a class are one thing that overlap by less than they should."""
    model = ir.load(path)
    *_, suppression = (node for node in model.graph if node.op_type == "NonMaxSuppression")
    assert suppression.inputs[3] is not None
    model.graph.initializers[str(suppression.inputs[3].name)].const_value = ir.tensor(LOWER, dtype=ir.DataType.FLOAT)
    save(model, path)


def in_onnxruntime(path: Path) -> Run:
    """A part's graph."""
    running = session(path)
    (given,) = running.get_inputs()
    return lambda x: run(running, {given.name: x})
