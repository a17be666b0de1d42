"""Editing an ONNX graph: constants and nodes under names of our choosing, put in the place of others."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from erq_export.contract.quantized import MARKERS

KEPT_METADATA = "erq."


class Editor:
    """Adds to and replaces in one graph. Names are unique: asking twice for a constant of the same name must mean the same."""

    def __init__(self, model: ir.Model) -> None:
        self.model, self.graph = model, model.graph
        self._named = Counter[str]()

    def constant(self, name: str, array: NDArray[np.generic] | np.generic) -> ir.Value:
        """An initializer of this name, type and value; ValueError where the name stands for something else already."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        if name in self.graph.initializers:
            have = value_of(self.graph.initializers[name])
            if have.dtype != array.dtype or have.shape != array.shape or not np.array_equal(have, array):
                raise ValueError(f"two different constants want the name {name}")
            return self.graph.initializers[name]
        tensor = ir.tensor(array, name=name)
        shape = ir.Shape(array.shape)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=shape)
        self.graph.register_initializer(value)
        return value

    def node(
        self,
        before: ir.Node,
        op: str,
        inputs: Sequence[ir.Value],
        name: str,
        *,
        dtype: ir.DataType,
        shape: ir.Shape | None,
        **attributes: int | Sequence[int],
    ) -> ir.Value:
        """Insert a node before another; returns its only output, called `<name>.out`. Where a name comes again, of a layer that
        is called on several levels, it gets a number."""
        self._named[name] += 1
        if (n := self._named[name]) > 1:
            name = f"{name}_{n - 1}"
        node = ir.node(op, list(inputs), dict(attributes), name=name)
        out = node.outputs[0]
        out.name, out.type, out.shape = f"{name}.out", ir.TensorType(dtype), shape
        self.graph.insert_before(before, [node])
        return out

    def replace(self, node: ir.Node, value: ir.Value) -> None:
        """Put `value` wherever the node's output was used, and remove the node. A graph output keeps its public name."""
        old = node.outputs[0]
        if old.is_graph_output():
            value.name, old.name = old.name, f"{old.name}.replaced"
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)

    def drop_unused(self) -> None:
        """Remove the nodes and constants that nothing uses."""
        passes.RemoveUnusedNodesPass()(self.model)

    def finish(self) -> None:
        """Drop what nothing uses, sort, and keep no metadata but our own (the exporter's holds source paths)."""
        self.drop_unused()
        passes.RemoveUnusedOpsetsPass()(self.model)
        passes.NameFixPass()(self.model)
        for thing in (self.graph, *self.graph, *self.graph.inputs, *self.graph.initializers.values()):
            _strip(thing)
        for node in self.graph:
            node.doc_string = None
            for out in node.outputs:
                _strip(out)


def _strip(thing: ir.Graph | ir.Node | ir.Value) -> None:
    for key in [k for k in thing.metadata_props if not k.startswith(KEPT_METADATA)]:
        del thing.metadata_props[key]


def value_of(value: ir.Value) -> NDArray[np.generic]:
    """The constant behind an initializer. Always by value: the exporter merges equal ones under one name."""
    if value.const_value is None:
        raise ValueError(f"{value.name} is not a constant")
    array: NDArray[np.generic] = value.const_value.numpy()
    return array


def marker_nodes(model: ir.Model) -> list[ir.Node]:
    """Where quantized layers and operands stand until a target's lowering takes their place, in graph order."""
    return [node for node in model.graph if node.op_type in MARKERS]


def path_of(marker: ir.Node) -> str:
    """The module path that a marker stands for."""
    return marker.metadata_props["erq.path"]


def name_by_module(model: ir.Model) -> None:
    """Give every node the name `<module path>/<operator>`, numbered where a module has several of one kind."""
    seen: dict[str, int] = {}
    for node in model.graph:
        scopes = ir_scopes(node)
        base = f"{scopes}/{node.op_type}" if scopes else node.op_type
        seen[base] = seen.get(base, -1) + 1
        node.name = f"{base}_{seen[base]}" if seen[base] else base


def ir_scopes(node: ir.Node) -> str:
    """The module path in which torch's exporter made the node; "" at the top."""
    import ast

    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    scope = str(scopes[-2]) if len(scopes) > 1 else ""
    return "" if scope.startswith("_") else scope
