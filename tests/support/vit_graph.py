"""A small vision transformer as an ONNX file, in the forms whose compiled plans the tests compare."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

IMAGE, PATCH, DIM, HEADS, DEPTH, CLASSES = 32, 8, 128, 2, 2, 10
TOKENS = (IMAGE // PATCH) ** 2
LINEARS = (
    "patch_embed.proj",
    *(f"blocks.{i}.{name}" for i in range(DEPTH) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    "head",
)


class ViT:
    """A small vision transformer as the exporter writes it: f16, LayerNorm and patch Q in f32, random weights.

    form "scalar": DQ(w_q, s0) -> MatMul -> Mul(ratio) -> Add; "channel": DQ(w_q, scale per column) -> MatMul -> Add;
    "float": no Q/DQ. bits: below 8 the input is clipped to its grid first. zero_point: of the head's input.
    """

    def __init__(self, form: str = "scalar", bits: int = 8, zero_point: int = 0, zero_type: Any = np.int8) -> None:
        self.form, self.bits, self.head_zero = form, bits, np.asarray(zero_point, zero_type)
        self.random = np.random.default_rng(0)
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}

    def save(self, path: Path, *, batch: str | int = "batch", image: str | int = IMAGE) -> Path:
        pixels = ir.Value(name="image", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([batch, 3, image, IMAGE]))
        logits = self.forward(pixels)
        logits.name, logits.type = "logits", ir.TensorType(ir.DataType.FLOAT)
        logits.shape = ir.Shape([batch, CLASSES])
        initializers = list(self.initializers.values())
        graph = ir.Graph(
            [pixels], [logits], nodes=self.nodes, initializers=initializers, opset_imports={"": 21}, name="vit"
        )
        ir.save(ir.Model(graph, ir_version=10), path)
        return path

    def forward(self, x: ir.Value) -> ir.Value:
        side = IMAGE // PATCH
        x = self.op("Reshape", "patch_embed/Split", x, self.ints("grid", -1, 3, side, PATCH, side, PATCH))
        x = self.op("Transpose", "patch_embed/Transpose", x, perm=[0, 2, 4, 1, 3, 5])
        x = self.op("Reshape", "patch_embed/Rows", x, self.ints("rows", -1, TOKENS, 3 * PATCH**2))  # (B, T, 3pp)
        x = self.linear("patch_embed.proj", x, 3 * PATCH**2, DIM, from_f32=True)
        for i in range(DEPTH):
            x = self.block(f"blocks.{i}", x)  # (B, T, D)
        x = self.op("Gather", "pool/Gather", self.norm("norm", x), self.const("zero", np.int64(0)), axis=1)  # (B, D)
        return self.op("Cast", "logits/Cast", self.linear("head", x, DIM, CLASSES, from_f32=True), to=1)

    def block(self, path: str, x: ir.Value) -> ir.Value:
        d = DIM // HEADS
        y = self.linear(f"{path}.attn.qkv", self.norm(f"{path}.norm1", x), DIM, 3 * DIM, from_f32=True)
        y = self.op("Reshape", f"{path}.attn/Heads", y, self.ints("heads", -1, TOKENS, 3, HEADS, d))
        y = self.op("Transpose", f"{path}.attn/Transpose", y, perm=[2, 0, 3, 1, 4])  # (3, B, H, T, d)
        q, k, v = (
            self.op("Gather", f"{path}.attn/{n}", y, self.const(n, np.int64(i)), axis=0) for i, n in enumerate("qkv")
        )
        q = self.op("Mul", f"{path}.attn/Scale", q, self.const("attention_scale", np.float16(d**-0.5)))
        k = self.op("Transpose", f"{path}.attn/KTranspose", k, perm=[0, 1, 3, 2])
        p = self.op("Softmax", f"{path}.attn/Softmax", self.op("MatMul", f"{path}.attn/QK", q, k), axis=-1)
        y = self.op("Transpose", f"{path}.attn/Merge", self.op("MatMul", f"{path}.attn/PV", p, v), perm=[0, 2, 1, 3])
        y = self.op("Reshape", f"{path}.attn/Tokens", y, self.ints("tokens", -1, TOKENS, DIM))
        x = self.op("Add", f"{path}/Add1", x, self.linear(f"{path}.attn.proj", y, DIM, DIM))
        y = self.linear(f"{path}.mlp.fc1", self.norm(f"{path}.norm2", x), DIM, 4 * DIM, from_f32=True)
        y = self.op("Gelu", f"{path}.mlp.act/Gelu", y)
        return self.op("Add", f"{path}/Add2", x, self.linear(f"{path}.mlp.fc2", y, 4 * DIM, DIM))

    def norm(self, path: str, x: ir.Value) -> ir.Value:
        gamma, beta = (
            self.const(f"{path}.weight", np.ones(DIM, np.float32)),
            self.const(f"{path}.bias", np.zeros(DIM, np.float32)),
        )
        x = self.op("Cast", f"{path}/Cast", x, to=1)
        return self.op("LayerNormalization", f"{path}/LayerNormalization", x, gamma, beta, axis=-1, epsilon=1e-6)

    def linear(self, path: str, x: ir.Value, k: int, n: int, *, from_f32: bool = False) -> ir.Value:
        weight = self.random.normal(0, 0.03, (k, n)).astype(np.float32)
        bias = self.const(f"{path}.bias", np.zeros(n, np.float16))
        if self.form == "float":
            x = self.op("Cast", f"{path}/Cast", x, to=10) if from_f32 else x
            y = self.op("MatMul", f"{path}/MatMul", x, self.const(f"{path}.weight", weight.astype(np.float16)))
            return self.op("Add", f"{path}/Add", y, bias)
        scale = np.abs(weight).max(0) / 127  # (n,)
        s0 = 2.0 ** np.ceil(np.log2(scale.max())) if self.form == "scalar" else scale
        integers = self.const(f"{path}.weight_q", np.round(weight / scale).astype(np.int8))
        zeros = self.const(f"{path}.weight_zero_point", np.zeros(np.shape(s0), np.int8))
        axis = {} if self.form == "scalar" else {"axis": 1}
        w_hat = self.op(
            "DequantizeLinear", f"{path}/weight/Dequantize", integers, self.halves(f"{path}.s0", s0), zeros, **axis
        )
        y = self.op("MatMul", f"{path}/MatMul", self.quantized(path, x, np.float32 if from_f32 else np.float16), w_hat)
        if self.form == "scalar":
            y = self.op("Mul", f"{path}/Mul", y, self.halves(f"{path}.ratio", scale / s0))
        return self.op("Add", f"{path}/Add", y, bias)

    def quantized(self, path: str, x: ir.Value, carrier: Any) -> ir.Value:
        s = 1 / 64
        zero = self.const(f"{path}.zero_point", self.head_zero if path == "head" else np.asarray(0, np.int8))
        if self.bits < 8:
            low, high = (np.asarray(s * code, carrier) for code in (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1))
            x = self.op("Clip", f"{path}/Clip", x, self.const(f"{path}.low", low), self.const(f"{path}.high", high))
        x = self.op(
            "QuantizeLinear", f"{path}/Quantize", x, self.const(f"{path}.q_scale", np.asarray(s, carrier)), zero
        )
        return self.op("DequantizeLinear", f"{path}/Dequantize", x, self.halves(f"{path}.dq_scale", s), zero)

    def op(self, kind: str, name: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(kind, list(inputs), attributes, name=name)
        node.outputs[0].name = f"{name}.out"
        self.nodes.append(node)
        return node.outputs[0]

    def const(self, name: str, array: NDArray[Any] | np.generic) -> ir.Value:
        if name not in self.initializers:
            tensor = ir.tensor(np.asarray(array), name=name)
            value = ir.Value(
                name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(np.shape(array))
            )
            self.initializers[name] = value
        return self.initializers[name]

    def halves(self, name: str, array: Any) -> ir.Value:
        return self.const(name, np.asarray(array, np.float16))

    def ints(self, name: str, *values: int) -> ir.Value:
        return self.const(f"shape.{name}", np.array(values, np.int64))
