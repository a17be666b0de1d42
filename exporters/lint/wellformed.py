"""Every way in which a model can be malformed, asked in an order in which each answer may rely on those before it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

from .attributes import STANDARD, node_problem
from .functions import MOST_NODES, function_problems, key
from .problem import Problem
from .shown import shown
from .structure import all_nodes, graph_problems, subgraphs
from .tensors import DATA_TYPES, tensor_problems
from .text import text_problems

_DEEPEST_TYPE = 32
_ORDINARY = DATA_TYPES - {onnx.TensorProto.UNDEFINED}  # what most values have: nothing more to ask
_NEWEST = onnx.defs.onnx_opset_version()


def model_problems(model: onnx.ModelProto, folder: Path) -> Iterator[Problem]:
    """The first one counts: what comes after it may be its consequence. `folder` is the model's own."""
    if not model.graph.node:
        yield Problem("its graph is empty", "give the .onnx file itself")
    if not model.graph.output:
        yield Problem("its graph has no outputs")
    yield from text_problems(model)
    for n, _ in enumerate(all_nodes(model.graph.node), 1):
        if n > MOST_NODES:
            yield Problem(f"it has more than {MOST_NODES} nodes, which is too large to check")
    yield from _version_problems(model)
    yield from function_problems(model)
    yield from graph_problems(model.graph)
    yield from _value_problems(model.graph, folder)
    local = {key(function) for function in model.functions}
    opset = _standard_opset(model.opset_import)
    yield from _body_problems(model.graph.node, opset or 1, local, folder, inside_function=False)
    for function in model.functions:
        own = _standard_opset(function.opset_import) or opset or 1
        yield from _body_problems(function.node, own, local, folder, inside_function=True)
        for attribute in function.attribute_proto:
            yield from _held_problems(attribute, folder)


def _body_problems(
    nodes: Sequence[onnx.NodeProto],
    opset: int,
    local: set[tuple[str, str, str]],
    folder: Path,
    *,
    inside_function: bool,
) -> Iterator[Problem]:
    """Nodes with those of subgraphs, and what they hold. A call of a local function has that function's attributes."""
    for node in all_nodes(nodes):
        known = key(node) not in local
        yield from node_problem(node, opset, known=known, inside_function=inside_function)
        for attribute in node.attribute:
            yield from _held_problems(attribute, folder)
        for graph in subgraphs(node):
            yield from _value_problems(graph, folder)


def _held_problems(attribute: onnx.AttributeProto, folder: Path) -> Iterator[Problem]:
    """Tensors and types in an attribute."""
    if attribute.HasField("t"):
        yield from tensor_problems(attribute.t, folder)
    for tensor in attribute.tensors:
        yield from tensor_problems(tensor, folder)
    where = f"attribute {shown(attribute.name)!r}"
    if attribute.HasField("tp"):
        yield from _type_problems(attribute.tp, where)
    for kind in attribute.type_protos:
        yield from _type_problems(kind, where)


def _value_problems(graph: onnx.GraphProto, folder: Path) -> Iterator[Problem]:
    """Constants, and the types of values."""
    for tensor in graph.initializer:
        yield from tensor_problems(tensor, folder)
    for sparse in graph.sparse_initializer:
        yield from tensor_problems(sparse.values, folder)
        yield from tensor_problems(sparse.indices, folder)
    for values in (graph.input, graph.output, graph.value_info):
        for value in values:
            if value.type.tensor_type.elem_type in _ORDINARY:
                continue
            yield from _type_problems(value.type, f"value {shown(value.name)!r}")


def _type_problems(kind: onnx.TypeProto, where: str, depth: int = 0) -> Iterator[Problem]:
    which = kind.WhichOneof("value")
    if depth > _DEEPEST_TYPE:
        yield Problem(f"{where}: types within types, more than {_DEEPEST_TYPE} deep")
    elif which in ("tensor_type", "sparse_tensor_type"):
        element = getattr(kind, which).elem_type
        if element not in DATA_TYPES:
            yield Problem(f"{where}: {element} is no data type")
    elif which in ("sequence_type", "optional_type"):
        yield from _type_problems(getattr(kind, which).elem_type, where, depth + 1)
    elif which is None and depth:
        yield Problem(f"{where}: a sequence or optional of nothing")
    elif which is not None:
        what = which.removesuffix("_type")
        yield Problem(f"{where} is a {what}, which is not read", "check the part of the model before it")


def _standard_opset(imports: Sequence[onnx.OperatorSetIdProto]) -> int | None:
    return next((each.version for each in imports if each.domain in STANDARD), None)


def _version_problems(model: onnx.ModelProto) -> Iterator[Problem]:
    """Of the format and of operators; a graph from before opsets (format 2) is at opset 1."""
    if not 1 <= model.ir_version <= onnx.IR_VERSION:
        yield Problem(f"its ir_version is {model.ir_version}; 1 to {onnx.IR_VERSION} are known")
    for imports, where in ((model.opset_import, "it"), *((f.opset_import, "a function") for f in model.functions)):
        versions: dict[str, int] = {}
        for each in imports:
            if versions.setdefault(each.domain, each.version) != each.version:
                yield Problem(f"{where} imports domain {shown(each.domain)!r} at two versions")
            if each.version < 1 or (each.domain in STANDARD and each.version > _NEWEST):
                yield Problem(
                    f"{where} imports domain {shown(each.domain)!r} at opset {each.version}; 1 to {_NEWEST} are known",
                    f"export with opset {_NEWEST} at most",
                )
    needed = any(node.domain in STANDARD for node in model.graph.node)
    if needed and model.ir_version >= 3 and _standard_opset(model.opset_import) is None:
        yield Problem("it does not say which opset its operators are of (opset_import)")
