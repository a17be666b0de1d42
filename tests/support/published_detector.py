"""State dicts with the names and shapes of the published detectors, written down from them, and random numbers inside."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from erq_export.models.detectors.architecture import Architecture
from erq_export.models.detectors.checkpoints import read_published
from erq_export.models.detectors.detector import Detector
from erq_export.models.detectors.framing import Framed, Framing

TOY = {"depths": (2, 2, 2, 2), "dim": 16, "heads": (1, 2, 4, 8), "channels": 16, "features": 32, "classes": 5}
PICTURE = (150, 182)  # which becomes 157 × 190 pixels on a canvas of
CANVAS = (
    160,
    192,
)  # with maps of 40 × 48, 20 × 24, 10 × 12 and 5 × 6 tokens: each is padded, the last within one window
FRAMING = Framing(short=160, long=190)
LARGE_PICTURE, LARGE_FRAMING = (390, 570), Framing(short=400, long=600)  # 416 × 608, whose last map has 7 × 10 places
LARGE_SEED = 4  # of weights that like large anchors
Shape = tuple[int, ...]


def toy(*, cascade: bool) -> Architecture:
    """A detector of a hundredth of the size; everything but the widths and depths is as published."""
    return Architecture(cascade=cascade, **TOY)  # type: ignore[arg-type]


def published_shapes(a: Architecture) -> dict[str, Shape]:
    """Name → shape of every tensor in the file."""
    return dict([*_backbone(a), *_pyramid(a), *_heads(a)])


def _layer(name: str, *shape: int, bias: bool = True) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", shape[:1]


def _backbone(a: Architecture) -> Iterator[tuple[str, Shape]]:
    yield from _layer("backbone.patch_embed.proj", a.dim, 3, 4, 4)
    yield from _layer("backbone.patch_embed.norm", a.dim)
    for stage, (depth, heads) in enumerate(zip(a.depths, a.heads, strict=True)):
        width = a.dim * 2**stage
        for i in range(depth):
            block = f"backbone.layers.{stage}.blocks.{i}"
            yield from _layer(f"{block}.norm1", width)
            yield f"{block}.attn.relative_position_bias_table", ((2 * a.window - 1) ** 2, heads)
            yield f"{block}.attn.relative_position_index", (a.window**2, a.window**2)
            yield from _layer(f"{block}.attn.qkv", 3 * width, width)
            yield from _layer(f"{block}.attn.proj", width, width)
            yield from _layer(f"{block}.norm2", width)
            yield from _layer(f"{block}.mlp.fc1", 4 * width, width)
            yield from _layer(f"{block}.mlp.fc2", width, 4 * width)
        if stage < len(a.depths) - 1:
            yield from _layer(f"backbone.layers.{stage}.downsample.reduction", 2 * width, 4 * width, bias=False)
            yield from _layer(f"backbone.layers.{stage}.downsample.norm", 4 * width)
        yield from _layer(f"backbone.norm{stage}", width)


def _pyramid(a: Architecture) -> Iterator[tuple[str, Shape]]:
    c = a.channels
    for stage in range(4):
        yield from _layer(f"neck.lateral_convs.{stage}.conv", c, a.dim * 2**stage, 1, 1)
        yield from _layer(f"neck.fpn_convs.{stage}.conv", c, c, 3, 3)
    yield from _layer("rpn_head.rpn_conv", c, c, 3, 3)
    yield from _layer("rpn_head.rpn_cls", 3, c, 1, 1)
    yield from _layer("rpn_head.rpn_reg", 12, c, 1, 1)


def _heads(a: Architecture) -> Iterator[tuple[str, Shape]]:
    c, f, k = a.channels, a.features, a.classes
    for head in ("0.", "1.", "2.") if a.cascade else ("",):
        box, mask = f"roi_head.bbox_head.{head}", f"roi_head.mask_head.{head}"
        yield from _layer(f"{box}fc_cls", k + 1, f)
        yield from _layer(f"{box}fc_reg", 4 * k, f)
        yield from _layer(f"{box}shared_fcs.0", f, c * 49)
        if a.cascade:
            for i in range(4):
                yield f"{box}shared_convs.{i}.conv.weight", (c, c, 3, 3)
                for part in ("weight", "bias", "running_mean", "running_var"):
                    yield f"{box}shared_convs.{i}.bn.{part}", (c,)
                yield f"{box}shared_convs.{i}.bn.num_batches_tracked", ()
        else:
            yield from _layer(f"{box}shared_fcs.1", f, f)
        for i in range(4):
            yield from _layer(f"{mask}convs.{i}.conv", c, c, 3, 3)
        yield f"{mask}upsample.weight", (c, c, 2, 2)
        yield f"{mask}upsample.bias", (c,)
        yield from _layer(f"{mask}conv_logits", k, c, 1, 1)


def random_state(a: Architecture, *, seed: int = 0) -> dict[str, Tensor]:
    """Numbers for all of it, with which every part of the detector counts: activations of size 1, biases and normalisations
    that differ from channel to channel, attention that depends on the position. Numpy's, equal on every machine."""
    rng = np.random.default_rng(seed)
    return {name: _random(name, shape, rng) for name, shape in sorted(published_shapes(a).items())}


def _random(name: str, shape: Shape, rng: np.random.Generator) -> Tensor:
    if name.endswith("relative_position_index"):
        return _position_index(round(shape[0] ** 0.5))
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1000)
    x = rng.standard_normal(shape)
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
        x = np.exp(0.3 * x)
    elif name.endswith("bias") or name.endswith("running_mean"):
        x = 0.3 * x
    elif len(shape) > 1 and not name.endswith("table"):
        x = x * (2.0 if ".convs." in name or "shared" in name else 1.0) ** 0.5 / np.prod(shape[1:]) ** 0.5
    if name.startswith("rpn_head.rpn_reg"):
        x = 0.2 * x  # of an anchor's size
    return torch.tensor(x, dtype=torch.float32)


def _position_index(window: int) -> Tensor:
    """Row of the bias table for two tokens of a window, as the published files hold it."""
    y, x = np.divmod(np.arange(window**2), window)
    index = (y[:, None] - y + window - 1) * (2 * window - 1) + (x[:, None] - x + window - 1)
    return torch.from_numpy(index)


def toy_detector(folder: Path, *, cascade: bool, seed: int = 1) -> Detector:
    """Loaded from a file like the published ones."""
    path = folder / "toy.pth"
    torch.save(
        {"meta": {"epoch": 36, "CLASSES": ("a",)}, "state_dict": random_state(toy(cascade=cascade), seed=seed)}, path
    )
    detector = Detector(toy(cascade=cascade), CANVAS)
    read_published(detector, path)
    return detector.eval().requires_grad_(False)


def framed(*, seed: int = 1) -> Framed:
    return FRAMING(picture(*PICTURE, seed=seed))


def picture(height: int, width: int, *, seed: int = 1) -> Tensor:
    """(3, H, W) uint8: noise of several sizes, so that no map is flat."""
    rng = np.random.default_rng(seed)
    out = np.zeros((3, height, width))
    for cell in (4, 16, 64):
        coarse = rng.standard_normal((3, -(-height // cell), -(-width // cell)))
        out += coarse.repeat(cell, 1).repeat(cell, 2)[:, :height, :width]
    return torch.from_numpy((128 + 40 * out).clip(0, 255).astype(np.uint8))
