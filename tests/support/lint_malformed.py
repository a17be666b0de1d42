"""Files that are no graph, each with the words that say why: damage of one kind to a graph that is clean otherwise."""

import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from lint_graphs import attribute, block, const, node
from onnx import TensorProto, helper

Damage = Callable[[onnx.ModelProto], object]
FLOAT = TensorProto.FLOAT


@dataclass(frozen=True, kw_only=True)
class Malformed:
    """`says` is part of the message; empty where rules may report or a message may come (never a traceback)."""

    name: str
    says: str
    write: Callable[[Path], object]


def damaged(name: str, says: str, damage: Damage) -> Malformed:
    def write(path: Path) -> None:
        model = block("tensorrt")
        damage(model)
        path.write_bytes(model.SerializeToString())

    return Malformed(name=name, says=says, write=write)


def as_bytes(name: str, says: str, data: bytes) -> Malformed:
    return Malformed(name=name, says=says, write=lambda path: path.write_bytes(data))


# ---------------------------------------------------------------- parts


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def put(owner: Callable[[onnx.ModelProto], Any], **fields: Any) -> Damage:
    """Set fields of a part of the model."""

    def damage(model: onnx.ModelProto) -> None:
        for name, value in fields.items():
            part = owner(model)
            if isinstance(value, list):
                part.ClearField(name)
                getattr(part, name).extend(value)
            else:
                setattr(part, name, value)

    return damage


def of_tensor(which: str, **fields: Any) -> Damage:
    return put(lambda m: tensor(m, which), **fields)


def of_node(which: str, **fields: Any) -> Damage:
    return put(lambda m: node(m, which), **fields)


def clear(owner: Callable[[onnx.ModelProto], Any], *fields: str) -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        for name in fields:
            owner(model).ClearField(name)

    return damage


def reads(name: str, index: int, value: str) -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        node(model, name).input[index] = value

    return damage


def attr(name: str, key: str, new: Any) -> Damage:
    return lambda model: attribute(model, name, key, new)


def external(name: str, location: str | None, **numbers: object) -> Damage:
    """Move a tensor's values into a file that is not written."""

    def damage(model: onnx.ModelProto) -> None:
        moved = tensor(model, name)
        moved.ClearField("raw_data")
        moved.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **numbers}.items():
            if value is not None:
                moved.external_data.add(key=key, value=str(value))

    return damage


def with_file(name: str, says: str, damage: Damage, make: Callable[[Path], object]) -> Malformed:
    """`make` gets the path of data.bin beside the model."""
    plain = damaged(name, says, damage)

    def write(path: Path) -> None:
        plain.write(path)
        make(path.parent / "data.bin")

    return Malformed(name=name, says=says, write=write)


def branch(model: onnx.ModelProto, body: onnx.GraphProto, op: str = "If") -> None:
    const(model, "condition", np.asarray(True))
    made = helper.make_node(op, ["condition"], ["either"], name="branch", then_branch=body, else_branch=body)
    model.graph.node.append(made)


def body(*nodes: onnx.NodeProto, output: str = "inner") -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "body", [], [helper.make_tensor_value_info(output, FLOAT, None)])


def nested(depth: int) -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        inner = body(helper.make_node("Identity", ["tokens"], ["inner"]))
        for _ in range(depth):
            inner = body(
                helper.make_node("If", ["condition"], ["inner"], then_branch=inner, else_branch=onnx.GraphProto())
            )
        branch(model, inner)

    return damage


def part(field: int, data: bytes) -> bytes:
    """A length-delimited protobuf field."""
    size, n = b"", len(data)
    while n > 127:
        size, n = size + bytes([n & 127 | 128]), n >> 7
    return bytes([field << 3 | 2]) + size + bytes([n]) + data


def nested_bytes(depth: int) -> bytes:
    """Graphs in attributes of nodes of graphs, deeper than protobuf writes."""
    graph = b""
    for _ in range(depth):
        held = part(1, b"then_branch") + b"\xa0\x01\x05" + part(6, graph)  # name, type GRAPH, g
        graph = part(1, part(2, b"out") + part(4, b"If") + part(5, held))
    return b"\x08\x0a" + part(7, graph)  # ir_version 10


def function(name: str, *calls: str, domain: str = "local") -> onnx.FunctionProto:
    nodes = [
        helper.make_node(c, ["x"], [f"y{i}"], domain="" if c == "Identity" else domain) for i, c in enumerate(calls)
    ]
    return helper.make_function(domain, name, ["x"], ["y0"], nodes, [helper.make_opsetid("", 21)])


def functions(*made: onnx.FunctionProto, called: str = "f0") -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        model.functions.extend(made)
        model.opset_import.append(helper.make_opsetid("local", 1))
        model.graph.node.append(helper.make_node(called, ["tokens"], ["called"], domain="local", name="call"))

    return damage


def laughs(model: onnx.ModelProto) -> None:
    """2^40 nodes when written out."""
    functions(
        *(function(f"f{i}", f"f{i + 1}", f"f{i + 1}") for i in range(40)), function("f40", "Identity"), called="f0"
    )(model)


def map_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.map_type.key_type = TensorProto.INT64


def sequence_of_nothing(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.sequence_type.SetInParent()


def not_utf8(path: Path) -> None:
    path.write_bytes(block("tensorrt").SerializeToString().replace(b"QuantizeLinear", b"Quantize\xff\xfenear"))


def sparse_file(size: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as f:
            f.truncate(size)

    return write


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("model/data.pkl", b"x")


def cut(model: onnx.ModelProto) -> bytes:
    data = model.SerializeToString()
    return data[: len(data) // 2]


def linked(data: Path) -> None:
    outside = data.parent.parent / "outside.bin"
    outside.write_bytes(bytes(64))
    data.symlink_to(outside)


def hard_linked(data: Path) -> None:
    data.write_bytes(bytes(64))
    os.link(data, data.with_name("second.bin"))


def self_link(path: Path) -> None:
    path.symlink_to(path)


def twice(field: str) -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        values = getattr(model.graph, field)
        values.append(values[0])

    return damage


def attribute_twice(model: onnx.ModelProto) -> None:
    softmax = node(model, "softmax")
    softmax.attribute.append(softmax.attribute[0])


def sparse_attribute(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.NodeProto(op_type="Constant", output=["sparse"], name="sparse"))
    held = model.graph.node[-1].attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
    held.sparse_tensor.dims.append(4)


def reference(model: onnx.ModelProto) -> None:
    node(model, "softmax").attribute[0].ref_attr_name = "axis"


def loop_of_two(model: onnx.ModelProto) -> None:
    reads("norm", 0, "residual.out")(model)


def inner_cycle(model: onnx.ModelProto) -> None:
    first = helper.make_node("Identity", ["second"], ["inner"], name="a")
    branch(model, body(first, helper.make_node("Identity", ["inner"], ["second"], name="b")))


def through_branch(model: onnx.ModelProto) -> None:
    """A subgraph reads what its own node makes."""
    branch(model, body(helper.make_node("Identity", ["either"], ["inner"], name="a")))


def graph(m: onnx.ModelProto) -> onnx.GraphProto:
    return m.graph


def whole(m: onnx.ModelProto) -> onnx.ModelProto:
    return m


def shape_of(m: onnx.ModelProto) -> Any:
    return m.graph.input[0].type.tensor_type


def first_opset(m: onnx.ModelProto) -> Any:
    return m.opset_import[0]


SCALE, WEIGHT = "fc.weight_scale", "fc.weight"
OUTSIDE = "outside the model's folder"
EVERY = (
    # ------------------------------------------------------------ no model at all
    as_bytes("empty file", "it is empty", b""),
    as_bytes("text", "does not begin like one", b"no model at all"),
    as_bytes("zeros", "does not begin like one", bytes(4096)),
    as_bytes("pickle", "does not begin like one", pickle.dumps({"a": [1, 2]})),
    as_bytes("cut", "is not an ONNX model: cut off, damaged", cut(block("tensorrt"))),
    as_bytes("garbage behind a good tag", "is not an ONNX model: cut off, damaged", b"\x08\x0a" + b"\xff" * 100),
    Malformed(name="zip", says="does not begin like one", write=zipped),
    Malformed(name="2 GiB of nothing", says="protobuf ends at 2 GiB", write=sparse_file(2**31)),
    Malformed(name="1.9 GB of nothing", says="does not begin like one", write=sparse_file(1_900_000_000)),
    Malformed(name="folder", says="it is a folder", write=Path.mkdir),
    Malformed(name="pipe", says="it is a pipe or device", write=os.mkfifo),
    Malformed(name="device", says="it is a pipe or device", write=lambda path: path.symlink_to("/dev/zero")),
    Malformed(name="dangling link", says="there is no file", write=lambda path: path.symlink_to(path.parent / "gone")),
    Malformed(name="link to itself", says="there is no file", write=self_link),
    Malformed(name="operator that is not UTF-8", says="NodeProto.op_type is b'Quantize\\xff", write=not_utf8),
    # ------------------------------------------------------------ versions
    damaged("no ir_version", "its ir_version is 0", clear(whole, "ir_version")),
    damaged("unknown ir_version", "its ir_version is 9999", put(whole, ir_version=9999)),
    damaged("negative ir_version", "its ir_version is -1", put(whole, ir_version=-1)),
    damaged("no opset", "does not say which opset", clear(whole, "opset_import")),
    damaged("opset 0", "at opset 0", put(first_opset, version=0)),
    damaged("negative opset", "at opset -9223372036854775808", put(first_opset, version=-(2**63))),
    damaged("huge opset", "at opset 9223372036854775807", put(first_opset, version=2**63 - 1)),
    damaged("two opsets", "at two versions", lambda m: m.opset_import.append(helper.make_opsetid("", 20))),
    # ------------------------------------------------------------ the graph
    damaged("no graph", "its graph is empty", clear(whole, "graph")),
    damaged("no nodes", "its graph is empty", clear(graph, "node")),
    damaged("no inputs", "reads 'tokens'", clear(graph, "input")),
    damaged("no outputs", "has no outputs", clear(graph, "output")),
    damaged("no initializers", "no node, input or initializer makes it", clear(graph, "initializer")),
    damaged("output that nobody makes", "makes its output 'x'", put(lambda m: m.graph.output[0], name="x")),
    damaged("cycle", "has a cycle: ", loop_of_two),
    damaged(
        "cycle of movements",
        "has a cycle: q/heads.out -> q/Transpose.out -> q/heads.out",
        reads("q/heads", 0, "q/Transpose.out"),
    ),
    damaged("self-loop", "has a cycle: qk.out -> qk.out is made of itself", reads("qk", 0, "qk.out")),
    damaged("cycle in a subgraph", "graph 'body' has a cycle", inner_cycle),
    damaged("cycle through a subgraph", "has a cycle: either -> either", through_branch),
    damaged("input that nobody makes", "node 'fc' (MatMul) reads 'nowhere'", reads("fc", 0, "nowhere")),
    damaged("name made twice", "makes 'qk.out', which node 'qk'", of_node("pv", output=["qk.out"])),
    damaged("name of an input", "makes 'tokens', which an input", of_node("pv", output=["tokens"])),
    damaged("input twice", "two inputs are named 'tokens'", twice("input")),
    damaged("initializer twice", "two initializers are named", twice("initializer")),
    damaged("input without a name", "has no name", put(lambda m: m.graph.input[0], name="")),
    damaged("initializer without a name", "an initializer has no name", of_tensor(WEIGHT, name="")),
    damaged("no operator", "has no operator", of_node("fc", op_type="")),
    damaged("too few inputs", "has 1 input, 2 or more are needed", of_node("fc", input=["tokens"])),
    damaged("no inputs of a node", "has 0 inputs", of_node("softmax", input=[])),
    damaged("too many inputs", "at most are allowed", of_node("softmax", input=["tokens"] * 9)),
    damaged("input left out", "its input 1 is left out", reads("fc", 1, "")),
    damaged("scale left out", "its input 1 is left out", reads("fc/Q", 1, "")),
    damaged("no outputs of a node", "has 0 outputs", lambda m: m.graph.node.add(op_type="Identity", input=["tokens"])),
    # ------------------------------------------------------------ subgraphs and functions
    as_bytes("nested too deep for protobuf", "graphs within graphs too deep", nested_bytes(40)),
    as_bytes("nested 1000 deep", "graphs within graphs too deep", nested_bytes(1000)),
    damaged("recursive function", "'f0' calls 'f0': it never ends", functions(function("f0", "f0"))),
    damaged("functions that call each other", "it never ends", functions(function("f0", "f1"), function("f1", "f0"))),
    damaged("functions that multiply", "at most 200000 are checked", laughs),
    damaged(
        "functions 100 deep",
        "more than 64 deep",
        functions(*(function(f"f{i}", f"f{i + 1}") for i in range(100)), function("f100", "Identity")),
    ),
    damaged("function twice", "is defined twice", functions(function("f0", "Identity"), function("f0", "Identity"))),
    # ------------------------------------------------------------ attributes
    damaged(
        "axis is text",
        "node 'softmax' (Softmax): attribute 'axis' is a string, an int is wanted",
        attr("softmax", "axis", "x"),
    ),
    damaged("axis is a float", "attribute 'axis' is a float, an int is wanted", attr("fc/Q", "axis", 0.5)),
    damaged("axis is a list", "attribute 'axis' is ints, an int is wanted", attr("fc/Q", "axis", [1, 2])),
    damaged(
        "axis is a tensor",
        "is a tensor, an int is wanted",
        attr("fc/Q", "axis", onnx.numpy_helper.from_array(np.ones(1))),
    ),
    damaged("block_size is text", "'block_size' is a string", attr("fc/weight/DQ", "block_size", "16")),
    damaged("perm is an int", "'perm' is an int, ints is wanted", attr("merge/Transpose", "perm", 1)),
    damaged("perm is no permutation", "is no permutation", attr("merge/Transpose", "perm", [0, 0, 7, 1])),
    damaged("output_dtype out of range", "is 9999, which is no data type", attr("fc/Q", "output_dtype", 9999)),
    damaged("num_outputs huge", "is 1099511627776, the node has 3 outputs", attr("split", "num_outputs", 2**40)),
    damaged(
        "attribute without a type",
        "has no type that ONNX knows",
        put(lambda m: node(m, "softmax").attribute[0], type=0),
    ),
    damaged("attribute twice", "two attributes are named 'axis'", attribute_twice),
    damaged("reference outside a function", "refers to 'axis' of a function", reference),
    damaged("sparse attribute", "is a sparse tensor, which is not read", sparse_attribute),
    # ------------------------------------------------------------ types
    damaged("type out of range", "value 'tokens': 4711 is no data type", put(shape_of, elem_type=4711)),
    damaged("negative type", "value 'tokens': -1 is no data type", put(shape_of, elem_type=-1)),
    damaged("map", "is a map, which is not read", map_input),
    damaged("sequence of nothing", "a sequence or optional of nothing", sequence_of_nothing),
    # ------------------------------------------------------------ tensors
    damaged("short", "needs 1024 bytes and holds 3", of_tensor(WEIGHT, raw_data=b"abc")),
    damaged("long", "needs 2 bytes and holds 9", of_tensor(SCALE, raw_data=bytes(9))),
    damaged("no values", "needs 1 values and holds 0", clear(lambda m: tensor(m, SCALE), "raw_data")),
    damaged("values twice", "holds its values twice", of_tensor(SCALE, int32_data=[1])),
    damaged("negative dimension", "none may be negative", of_tensor(SCALE, dims=[-4])),
    damaged("huge dimension", "needs 2199023255552 bytes and holds 2", of_tensor(SCALE, dims=[2**40])),
    damaged("1000 dimensions", "has 1000 dimensions, at most 64 are read", of_tensor(SCALE, dims=[1] * 1000)),
    damaged("overflowing dimensions", "no machine holds that", of_tensor(SCALE, dims=[2**62, 2**62])),
    damaged("type of a tensor out of range", "4711 is no data type", of_tensor(SCALE, data_type=4711)),
    damaged("type of a tensor missing", "0 is no data type", of_tensor(SCALE, data_type=0)),
    damaged("scale of strings", "strings cannot be raw_data", of_tensor(SCALE, data_type=TensorProto.STRING)),
    damaged(
        "scale of text", "a scale, zero point or shape is a number", lambda m: const(m, SCALE, np.asarray("x", object))
    ),
    damaged("complex scale", "a scale, zero point or shape is a number", lambda m: const(m, SCALE, np.complex64(1))),
    # ------------------------------------------------------------ external data
    damaged("absolute path", OUTSIDE, external(WEIGHT, "/etc/passwd")),
    damaged("parent folder", OUTSIDE, external(WEIGHT, "../weights.bin")),
    damaged("hidden parent", OUTSIDE, external(WEIGHT, "a/../../weights.bin")),
    damaged("Windows path", OUTSIDE, external(WEIGHT, "C:\\weights.bin")),
    damaged("no location", "names no file", external(WEIGHT, None)),
    damaged("location with a zero byte", "names no file", external(WEIGHT, "a\0b")),
    damaged("offset is text", "no count of bytes", external(WEIGHT, "data.bin", offset="x")),
    damaged("negative offset", "no count of bytes", external(WEIGHT, "data.bin", offset=-1)),
    damaged("offset in other digits", "no count of bytes", external(WEIGHT, "data.bin", offset="²")),
    damaged("huge offset", "no count of bytes", external(WEIGHT, "data.bin", offset=10**30)),
    damaged("length differs", "its external data are 7", external(WEIGHT, "data.bin", length=7)),
    damaged("name too long", "cannot be read: File name too long", external(WEIGHT, "x" * 5000)),
    damaged("scale is missing", "'data.bin', which is missing", external(SCALE, "data.bin")),
    with_file(
        "file too short",
        "ends at byte 5, its data at 1024",
        external(WEIGHT, "data.bin"),
        lambda p: p.write_bytes(bytes(5)),
    ),
    with_file("offset beyond", "its data at 10002", external(SCALE, "data.bin", offset=10000), sparse_file(100)),
    with_file("data are a pipe", "is no plain file", external(SCALE, "data.bin"), os.mkfifo),
    with_file("data are a folder", "is no plain file", external(SCALE, "data.bin"), Path.mkdir),
    with_file(
        "data are a device", "is no plain file", external(SCALE, "data.bin"), lambda p: p.symlink_to("/dev/zero")
    ),
    with_file("link out of the folder", "a link out of the model's folder", external(SCALE, "data.bin"), linked),
    with_file("hard link", "has other hard links", external(SCALE, "data.bin"), hard_linked),
    with_file(
        "scales of 2 TiB",
        "a scale, zero point or shape has 16777216 at most",
        lambda m: (of_tensor(SCALE, dims=[2**40])(m), external(SCALE, "data.bin")(m)),
        sparse_file(2**41),
    ),
)
