"""Pictures to find things in, drawn from a seed: shapes of eight kinds, turned, textured, in front of each other.

A stand-in for COCO that needs no download. 192 × 256 pixels, so that none of the maps of a Swin, of 48 × 64 tokens down to 6 × 8,
is a whole number of 7 × 7 windows. A scene depends on the seed and on its own number alone.

Letters:  (u, v) coordinates of a shape, turned with it, about −1 … 1;  r² = u² + v²
"""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from erq_export.data.runs import runs

Mask = NDArray[np.bool_]
Plane = NDArray[np.float64]
HEIGHT, WIDTH = 192, 256
SMALLEST, LARGEST = 9, 60  # pixels across
MOST = 7  # shapes a scene
VISIBLE = 0.25  # of a shape's pixels: what is hidden further is not asked for
FEWEST = 12  # visible pixels of a shape; the least bar has twice as many
SALT = "scenes 1"  # another drawing is another data set: count it up


def _petals(u: Plane, v: Plane) -> Mask:
    """r ≤ 0.64 + 0.36 cos 5θ, with cos θ = u / r"""
    r = np.sqrt(u * u + v * v) + 1e-12
    c = u / r
    petals: Mask = r <= 0.64 + 0.36 * (16 * c**5 - 20 * c**3 + 5 * c)
    return petals


KINDS: dict[str, Callable[[Plane, Plane], Mask]] = {
    "disc": lambda u, v: u * u + v * v <= 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.8,
    "triangle": lambda u, v: (v <= 0.5) & (v >= 3**0.5 * abs(u) - 1),
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) <= 0.3) & (np.maximum(abs(u), abs(v)) <= 1),
    "ring": lambda u, v: (u * u + v * v <= 1) & (u * u + v * v >= 0.3),
    "flower": _petals,
    "half": lambda u, v: (u * u + v * v <= 1) & (v >= 0),
    "bar": lambda u, v: (abs(u) <= 1) & (abs(v) <= 0.3),
}
NAMES = tuple(KINDS)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One picture and the visible pixels of each thing on it, hindmost first."""

    picture: NDArray[np.uint8]  # (H, W, 3)
    labels: tuple[int, ...]  # (n,) 1 … 8
    masks: Mask  # (n, H, W)


def scene(i: int, *, seed: int) -> Scene:
    """The i-th scene of a seed, at least one thing on it."""
    rng = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, i])))  # its numbers never change
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    picture = _cloud(rng, 32, 50) + _cloud(rng, 8, 18) + rng.uniform(70, 185, 3)  # (H, W, 3)
    labels, masks = [], []
    for _ in range(rng.randint(1, MOST + 1)):
        label, half = rng.randint(len(NAMES)), np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST))) / 2
        dx, dy = x - rng.uniform(half, WIDTH - half), y - rng.uniform(half, HEIGHT - half)
        c, s = _direction(rng)
        mask = KINDS[NAMES[label]]((c * dx + s * dy) / half, (c * dy - s * dx) / half)
        picture[mask] = (rng.uniform(20, 235, 3) + _texture(rng, dx, dy)[:, :, None])[mask]
        labels.append(label + 1)
        masks.append(mask)
    picture += 6 * rng.standard_normal(picture.shape)
    seen = np.stack([mask & ~np.any(masks[k + 1 :], axis=0) for k, mask in enumerate(masks)])  # what no later one hides
    whole, left = np.stack(masks).sum((1, 2)), seen.sum((1, 2))
    kept = (left >= VISIBLE * whole) & (left >= FEWEST)  # the last one is in front
    return Scene(
        picture=picture.clip(0, 255).round().astype(np.uint8),
        labels=tuple(label for label, keep in zip(labels, kept, strict=True) if keep),
        masks=seen[kept],
    )


def _cloud(rng: np.random.RandomState, cell: int, size: float) -> Plane:
    """(H, W, 3) noise, bilinear between points `cell` pixels apart"""
    points = size / 2 * rng.standard_normal((HEIGHT // cell + 2, WIDTH // cell + 2, 3))
    for axis, n in enumerate((HEIGHT, WIDTH)):
        at = np.arange(n) / cell
        low = at.astype(int)
        share = (at - low).reshape([-1 if k == axis else 1 for k in range(3)])
        points = (1 - share) * points.take(low, axis) + share * points.take(low + 1, axis)
    return points


def _direction(rng: np.random.RandomState) -> tuple[float, float]:
    """(cos, sin) of some angle; of the half tangent, in exact arithmetic but one division."""
    t = rng.uniform(-1, 1)
    c, s = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    return (c, s) if rng.randint(2) else (-s, c)


def _texture(rng: np.random.RandomState, dx: Plane, dy: Plane) -> Plane:
    """Plain, stripes or checks, (H, W)."""
    period, kind = rng.uniform(4, 12), rng.randint(3)
    stripes = np.floor(dx / period) + (np.floor(dy / period) if kind == 2 else 0)
    return np.zeros_like(dx) if kind == 0 else rng.uniform(15, 45) * (2 * (stripes % 2) - 1)


class Scenes:
    """Scenes first … first + n − 1 of a seed, as a source of images with annotations."""

    labels = None

    def __init__(self, n: int, *, seed: int, first: int = 0) -> None:
        self.seed, self.numbers = seed, range(first, first + n)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{SALT} {self.seed} {self.numbers}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.numbers)

    def name(self, i: int) -> str:
        return f"{self.numbers[i]:06d}.png"

    def id(self, i: int) -> int:
        return self.numbers[i]

    def size(self, i: int) -> tuple[int, int]:  # noqa: ARG002 - all have one
        return HEIGHT, WIDTH

    def image(self, i: int) -> Image.Image:
        return Image.fromarray(scene(self.numbers[i], seed=self.seed).picture)

    def truth(self, pictures: Sequence[int] | None = None) -> dict[str, Any]:
        """What is on these scenes, by position, all where none is named, in COCO's form; ids are the scenes' numbers."""
        chosen = [self.numbers[i] for i in (range(len(self)) if pictures is None else pictures)]
        size = {"height": HEIGHT, "width": WIDTH}
        return {
            "images": [{"id": i, "file_name": f"{i:06d}.png"} | size for i in chosen],
            "annotations": [thing for i in chosen for thing in _things(i, scene(i, seed=self.seed))],
            "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES, 1)],
        }

    def write(self, root: Path, split: str) -> None:
        """The scenes as a folder in COCO's layout."""
        (root / split).mkdir(parents=True)
        (root / "annotations").mkdir(exist_ok=True)
        for i in range(len(self)):
            data = io.BytesIO()
            self.image(i).save(data, "PNG")
            (root / split / self.name(i)).write_bytes(data.getvalue())
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(self.truth()), encoding="utf-8")


def _things(i: int, drawn: Scene) -> list[dict[str, Any]]:
    """Annotations of one scene: a box ends with the last visible pixel."""
    things = []
    for k, (label, mask) in enumerate(zip(drawn.labels, drawn.masks, strict=True)):
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        x, y = int(columns[0]), int(rows[0])
        things.append(
            {
                "id": i * MOST + k + 1,
                "image_id": i,
                "category_id": label,
                "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs(mask)},
                "area": int(mask.sum()),
                "iscrowd": 0,
            }
        )
    return things
