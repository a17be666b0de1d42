"""A small transformer block with integer attention, legal on its target, and ways to damage it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

TOKENS, DIM, HEADS = 16, 32, 2
SCALE = 2.0**-6  # exact in float16
_TYPES: dict[str, Any] = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16}


class Block:
    """LayerNorm → qkv → attention with all five sites quantized → proj → residual → fc, on tokens (B, T, D).

    "onnx": uint8 codes, float32, weight scales per channel;  "tensorrt": int8 codes with zero point 0, float16 behind the
    first quantizer, one weight scale and a ratio behind the product.
    """

    def __init__(self, target: str, *, tokens: int = TOKENS, dim: int = DIM, heads: int = HEADS) -> None:
        self.onnx, self.tokens, self.dim, self.heads = target == "onnx", tokens, dim, heads
        self.fp = np.dtype(np.float32 if self.onnx else np.float16)
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def model(self) -> onnx.ModelProto:
        d = self.dim // self.heads
        gamma, beta = (
            self.const(n, a)
            for n, a in (("gamma", np.ones(self.dim, np.float32)), ("beta", np.zeros(self.dim, np.float32)))
        )
        x = self.op("LayerNormalization", "norm", "tokens", gamma, beta, axis=-1)
        y = self.linear("qkv", x, self.dim, 3 * self.dim, np.float32)
        thirds = [f"{n}.tokens" for n in "qkv"]
        self.nodes.append(
            helper.make_node(
                "Split", [y, self.const("thirds", np.array([self.dim] * 3))], thirds, name="split", axis=-1
            )
        )
        heads = self.const("heads", np.array([0, self.tokens, self.heads, d]))
        q, k, v = (self.op("Reshape", f"{n}/heads", self.quantized(n, f"{n}.tokens"), heads) for n in "qkv")
        q, v = (self.op("Transpose", f"{n}/Transpose", value, perm=[0, 2, 1, 3]) for n, value in (("q", q), ("v", v)))
        k = self.op("Transpose", "k/Transpose", k, perm=[0, 2, 3, 1])
        p = self.op("Softmax", "softmax", self.op("MatMul", "qk", q, k), axis=-1)
        y = self.op("MatMul", "pv", self.quantized("p", p), v)
        y = self.op("Transpose", "merge/Transpose", y, perm=[0, 2, 1, 3])
        y = self.op("Reshape", "merge", y, self.const("merged", np.array([0, self.tokens, self.dim])))
        y = self.linear("proj", y, self.dim, self.dim)
        x = "tokens" if self.onnx else self.op("Cast", "tokens/Cast", "tokens", to=_TYPES["float16"])
        x = self.op("Add", "residual", x, y)
        y = self.linear("fc", self.op("Gelu", "gelu", x), self.dim, self.dim)
        out = self.op("Cast", "out", y, to=_TYPES["float32"])
        shape = ["batch", self.tokens, self.dim]
        values = [helper.make_tensor_value_info(n, _TYPES["float32"], shape) for n in ("tokens", out)]
        return self.finish(values[:1], values[1:])

    def finish(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "block", inputs, outputs, list(self.constants.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)

    def linear(self, path: str, x: str, k: int, n: int, dtype: Any = None) -> str:
        integers = self.const(f"{path}.weight", self.random.integers(-127, 128, (k, n)).astype(np.int8))
        y = self.op("MatMul", path, self.quantized(path, x, dtype), self.weight(path, integers, n))
        if not self.onnx:
            y = self.op("Mul", f"{path}/Mul", y, self.const(f"{path}.ratio", np.full(n, 0.75, self.fp)))
        return self.op("Add", f"{path}/Add", y, self.const(f"{path}.bias", np.full(n, 0.5, self.fp)))

    def weight(self, path: str, integers: str, n: int, axis: int = 1) -> str:
        shape: tuple[int, ...] = (n,) if self.onnx or axis == 0 else ()
        scale = self.const(f"{path}.weight_scale", np.full(shape, SCALE / 4, self.fp))
        zero = self.const(f"{path}.weight_zero", np.zeros(shape, np.int8))
        along = {"axis": axis} if shape else {}
        return self.op("DequantizeLinear", f"{path}/weight/DQ", integers, scale, zero, **along)

    def quantized(self, path: str, x: str, dtype: Any = None) -> str:
        zero = self.const(f"{path}.zero", np.uint8(128) if self.onnx else np.int8(0))
        scale = self.const(f"{path}.q_scale", np.array(SCALE, dtype or self.fp))
        codes = self.op("QuantizeLinear", f"{path}/Q", x, scale, zero)
        return self.op(
            "DequantizeLinear", f"{path}/DQ", codes, self.const(f"{path}.dq_scale", np.array(SCALE, self.fp)), zero
        )

    def op(self, kind: str, name: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def const(self, name: str, array: Any) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(np.asarray(array), name))
        return name


def block(target: str) -> onnx.ModelProto:
    return Block(target).model()


def conv(target: str) -> onnx.ModelProto:
    """A quantized convolution, output quantized too, with int32 bias where the target takes one: DQ, DQ → Conv → Q → DQ."""
    b = Block(target)
    integers = b.const("conv.weight", b.random.integers(-127, 128, (8, 4, 2, 2)).astype(np.int8))
    y = b.op("Conv", "conv", b.quantized("conv", "image", np.float32), b.weight("conv", integers, 8, 0), strides=[2, 2])
    y = b.quantized("output", y)
    y = b.op("Cast", "out", y, to=_TYPES["float32"])
    values = [
        helper.make_tensor_value_info(n, _TYPES["float32"], ["batch", *s])
        for n, s in (("image", [4, 8, 8]), (y, [8, 4, 4]))
    ]
    return b.finish(values[:1], values[1:])


def gemm(target: str) -> onnx.ModelProto:
    """A quantized Gemm on (B, D) without a bias."""
    b = Block(target)
    integers = b.const("gemm.weight", b.random.integers(-127, 128, (DIM, DIM)).astype(np.int8))
    x, w = b.quantized("gemm", "rows", np.float32), b.weight("gemm", integers, DIM, 0)
    y = b.op("Cast", "out", b.op("Gemm", "gemm", x, w, transB=1), to=_TYPES["float32"])
    values = [helper.make_tensor_value_info(n, _TYPES["float32"], ["batch", DIM]) for n in ("rows", y)]
    return b.finish(values[:1], values[1:])


# ---------------------------------------------------------------- damage


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def const(model: onnx.ModelProto, name: str, array: NDArray[Any] | np.generic) -> None:
    """Another value for an initializer, or a new one."""
    old = [t for t in model.graph.initializer if t.name == name]
    for tensor in old:
        model.graph.initializer.remove(tensor)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))


def value(model: onnx.ModelProto, name: str) -> NDArray[Any]:
    array: NDArray[Any] = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))
    return array


def four_bits(model: onnx.ModelProto, name: str, kind: int = onnx.TensorProto.INT4) -> None:
    """Retype an initializer to (u)int4; its values are clipped to −8 … 7, or 0 … 7."""
    array = value(model, name)
    low = -8 if kind == onnx.TensorProto.INT4 else 0
    tensor = helper.make_tensor(name, kind, array.shape, np.clip(array, low, 7).astype(np.int64).ravel().tolist())
    model.graph.initializer.remove(next(t for t in model.graph.initializer if t.name == name))
    model.graph.initializer.append(tensor)


def attribute(model: onnx.ModelProto, name: str, key: str, new: int) -> None:
    found = node(model, name)
    for old in [a for a in found.attribute if a.name == key]:
        found.attribute.remove(old)
    found.attribute.append(helper.make_attribute(key, new))


def insert(model: onnx.ModelProto, before: str, index: int, op: str, *inputs: str, **attributes: Any) -> str:
    """A node on the edge into input `index` of `before`; its name is `<before>/in<index>/<op>`."""
    reader, name = node(model, before), f"{before}/in{index}/{op}"
    made = helper.make_node(op, [reader.input[index], *inputs], [f"{name}.out"], name=name, **attributes)
    model.graph.node.insert(list(model.graph.node).index(reader), made)
    reader.input[index] = f"{name}.out"
    return name


def bypass(model: onnx.ModelProto, path: str) -> None:
    """Take a Q/DQ pair out."""
    q, dq = node(model, f"{path}/Q"), node(model, f"{path}/DQ")
    for n in model.graph.node:
        for i, name in enumerate(n.input):
            if name == dq.output[0]:
                n.input[i] = q.input[0]
    for gone in (q, dq):
        model.graph.node.remove(gone)


def pair(model: onnx.ModelProto, before: str, index: int, like: str) -> None:
    """A Q/DQ pair on an edge, with the constants of another."""
    source = node(model, f"{like}/DQ")
    q = insert(model, before, index, "QuantizeLinear", source.input[1], source.input[2])
    assert q
    insert(model, before, index, "DequantizeLinear", source.input[1], source.input[2])


def opset(model: onnx.ModelProto, version: int) -> None:
    model.opset_import[0].version = version
