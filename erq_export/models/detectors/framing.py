"""How a picture becomes the pixels that a detector takes: resized, normalised, laid on a canvas."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from erq_export.contract.errors import SpecError
from erq_export.models.detectors.architecture import Size

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of red, green and blue, 0 … 255
STEP = 32  # pixels: sides of a canvas are multiples, so that Swin's four stages halve them evenly
SHORT, LONG = 800, 1333  # sides that a picture is resized to, whichever is reached first


@dataclass(frozen=True, kw_only=True)
class Framed:
    """One picture on its canvas."""

    pixels: Tensor  # (1, 3, H, W), zero where the picture ends
    size: Size  # of the resized picture in the canvas' upper left corner
    given: Size  # of the picture as it was given

    @property
    def canvas(self) -> Size:
        """Height and width of what it lies on."""
        return self.pixels.shape[2], self.pixels.shape[3]

    @property
    def scale(self) -> Tensor:
        """(4,) resized / given, for x₁, y₁, x₂, y₂"""
        y, x = (new / old for new, old in zip(self.size, self.given, strict=True))
        return torch.tensor((x, y, x, y))


@dataclass(frozen=True, kw_only=True)
class Framing:
    """Resize to `short` × `long`, the ratio kept; onto the first canvas that holds it, or the least one where none is named.

    A canvas that is larger than need be changes the result a little: zeros to the right and below join windows.
    """

    short: int = SHORT
    long: int = LONG
    canvases: tuple[Size, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("short", self.short), ("long", self.long)):
            if value < 1:
                raise SpecError(f"pictures cannot be resized to a {name} side of {value} pixels", fix="1 or more")
        for height, width in self.canvases:
            if min(height, width) < STEP or height % STEP or width % STEP:
                raise SpecError(
                    f"a canvas of {height}×{width} pixels: both sides must be multiples of {STEP}, and at least {STEP}",
                    fix=f"{_up(height)}×{_up(width)}",
                )

    def resized_size(self, given: Size) -> Size:
        """Sides after resizing, rounded to the nearest pixel."""
        scale = min(self.long / max(given), self.short / min(given))
        height, width = (max(1, int(side * scale + 0.5)) for side in given)
        return height, width

    def fits(self, given: Size) -> bool:
        """Is there a canvas for a picture of this size?"""
        size = self.resized_size(given)
        return not self.canvases or any(size[0] <= h and size[1] <= w for h, w in self.canvases)

    def canvas_for(self, given: Size) -> Size:
        """The canvas of a picture of this size. SpecError where it fits on none."""
        return self.canvas(self.resized_size(given))

    def canvas(self, size: Size) -> Size:
        """The canvas of a resized picture. SpecError where it fits on none."""
        if not self.canvases:
            return _up(size[0]), _up(size[1])
        for canvas in self.canvases:
            if all(side <= room for side, room in zip(size, canvas, strict=True)):
                return canvas
        named = ", ".join(f"{h}×{w}" for h, w in self.canvases)
        raise SpecError(
            f"a picture of {size[0]}×{size[1]} pixels fits on no canvas of {named}",
            fix=f"a canvas of {_up(size[0])}×{_up(size[1])}, or resize to shorter sides",
        )

    def __call__(self, picture: Tensor) -> Framed:
        """(3, H, W) uint8, red, green, blue"""
        given = (picture.shape[1], picture.shape[2])
        size = self.resized_size(given)
        height, width = self.canvas(size)
        resized = F.interpolate(picture[None].float(), size, mode="bilinear", align_corners=False)
        mean, std = (torch.tensor(values, device=picture.device)[:, None, None] for values in (MEAN, STD))
        normal = (resized.round().clamp(0, 255) - mean) / std  # whole grey levels, as the original's resize gives them
        pixels = F.pad(normal, (0, width - size[1], 0, height - size[0]))
        return Framed(pixels=pixels, size=size, given=given)


def laid_on(pixels: Tensor, canvas: Size) -> Tensor:
    """(1, 3, H, W) → the same on another canvas, as far as it lies on it, with zeros where it ends."""
    height, width = pixels.shape[2:]
    return F.pad(pixels, (0, canvas[1] - width, 0, canvas[0] - height))


def _up(side: int) -> int:
    return max(STEP, side + -side % STEP)
