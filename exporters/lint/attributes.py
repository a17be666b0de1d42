"""Has a node what its operator takes: attributes of the right type, enough inputs and outputs?"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from .problem import Problem, called, counted
from .shown import shown
from .tensors import DATA_TYPES
from .view import AFFINE, DQ, MOVEMENT, PRODUCTS, Q

STANDARD = ("", "ai.onnx")
_JUDGED = MOVEMENT | AFFINE | PRODUCTS | {Q, DQ, "Softmax"}  # the rules look into these whatever their domain
_Kind = onnx.AttributeProto
_KINDS = {getattr(onnx.defs.OpSchema.AttrType, name): number for name, number in _Kind.AttributeType.items() if number}
_TYPES = frozenset(_Kind.AttributeType.values()) - {_Kind.UNDEFINED}
_VALUES = {_Kind.TENSOR: "t", _Kind.GRAPH: "g", _Kind.TYPE_PROTO: "tp"}  # without it there is nothing to read
_SPARSE = (_Kind.SPARSE_TENSOR, _Kind.SPARSE_TENSORS)


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What an operator takes. `needed` are the inputs that may not be left out; types are AttributeProto.AttributeType."""

    attributes: dict[str, int]
    inputs: range
    outputs: range
    needed: tuple[int, ...]


@functools.cache
def signature(operator: str, opset: int) -> Signature | None:
    """What ONNX's schema of that opset or its newest one allows (a graph whose opset is too low is a finding, no damage);
    None for an operator that ONNX does not have."""
    if not onnx.defs.has(operator, ""):
        return None
    newest = onnx.defs.get_schema(operator, onnx.defs.onnx_opset_version(), "")
    then = newest if opset < _first(operator) else onnx.defs.get_schema(operator, opset, "")
    both = (newest, then)
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    return Signature(
        attributes={name: _KINDS[a.type] for schema in both for name, a in schema.attributes.items()},
        inputs=range(min(s.min_input for s in both), max(s.max_input for s in both) + 1),
        outputs=range(min(s.min_output for s in both), max(s.max_output for s in both) + 1),
        needed=tuple(
            i
            for i in range(min(s.min_input for s in both))
            if all(s.inputs[i].option == single for s in both if i < len(s.inputs))
        ),
    )


@functools.cache
def _first(operator: str) -> int:
    """The opset that brought it; get_schema raises below."""
    opset = onnx.defs.onnx_opset_version()
    while onnx.defs.has(operator, opset, ""):
        opset = onnx.defs.get_schema(operator, opset, "").since_version - 1
    return opset + 1


def node_problem(node: onnx.NodeProto, opset: int, *, known: bool, inside_function: bool) -> Iterator[Problem]:
    """`known`: the operator is ONNX's or a custom one, not a function of the model. What says an empty name is left out."""
    if not node.op_type:
        yield Problem(f"{called(node)} has no operator")
    standard = node.domain in STANDARD
    takes = signature(node.op_type, opset) if known and (standard or node.op_type in _JUDGED) else None
    names = set()
    for attribute in node.attribute:
        if attribute.name in names or not attribute.name:
            yield Problem(f"{called(node)}: two attributes are named {shown(attribute.name)!r}, or one has no name")
        names.add(attribute.name)
        yield from _attribute_problems(node, attribute, takes, inside_function=inside_function)
    if takes is None:
        return
    for what, given, allowed in (("input", node.input, takes.inputs), ("output", node.output, takes.outputs)):
        if len(given) < allowed.start:
            yield Problem(f"{called(node)} has {counted(len(given), what)}, {allowed.start} or more are needed")
        if standard and len(given) >= allowed.stop:
            yield Problem(f"{called(node)} has {counted(len(given), what)}, {allowed.stop - 1} at most are allowed")
    for i in takes.needed:
        if standard and not node.input[i]:
            yield Problem(f"{called(node)}: its input {i} is left out and may not be")
    if node.op_type == "Constant" and not node.output[0]:
        yield Problem(f"{called(node)}: what it makes has no name")


def _attribute_problems(
    node: onnx.NodeProto, attribute: onnx.AttributeProto, takes: Signature | None, *, inside_function: bool
) -> Iterator[Problem]:
    where = f"{called(node)}: attribute {shown(attribute.name)!r}"
    if attribute.ref_attr_name and not inside_function:
        yield Problem(f"{where} refers to {shown(attribute.ref_attr_name)!r} of a function, and stands in none")
    if attribute.type not in _TYPES:
        yield Problem(f"{where} has no type that ONNX knows ({attribute.type})")
    wanted = takes.attributes.get(attribute.name) if takes is not None else None
    if wanted is not None and attribute.type != wanted:
        yield Problem(f"{where} is {_a(attribute.type)}, {_a(wanted)} is wanted")
    if attribute.type in _SPARSE:
        yield Problem(f"{where} is a sparse tensor, which is not read", "store it as a dense tensor")
    field = _VALUES.get(attribute.type)
    if field is not None and not attribute.ref_attr_name and not attribute.HasField(field):
        yield Problem(f"{where} is {_a(attribute.type)} and holds none")
    if attribute.ref_attr_name or wanted is None:
        return
    if (
        node.op_type == "Transpose"
        and attribute.name == "perm"
        and sorted(attribute.ints) != [*range(len(attribute.ints))]
    ):
        yield Problem(f"{where} is no permutation: {shown([*attribute.ints])}")
    if node.op_type == Q and attribute.name == "output_dtype" and attribute.i not in DATA_TYPES:
        yield Problem(f"{where} is {attribute.i}, which is no data type")
    if node.op_type == "Split" and attribute.name == "num_outputs" and attribute.i != len(node.output):
        yield Problem(f"{where} is {attribute.i}, the node has {counted(len(node.output), 'output')}")


def _a(kind: int) -> str:
    name = _Kind.AttributeType.Name(kind).lower().replace("_", " ")
    return name if name.endswith("s") else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
