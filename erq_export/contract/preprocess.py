"""How an image becomes a tensor: evaluation preprocessing, validated at birth."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from PIL import Image
from torch import Tensor

from erq_export.contract.errors import SpecError
from erq_export.contract.registry import unknown

INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming")


SMALLEST_STD = 1e-6  # of pixels in [0, 1]; float32 would turn much less into infinite values


CROP_MODES = ("center", "squash", "border")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Evaluation preprocessing: resize the short side to size/crop_pct, centre crop, scale to [0, 1], normalise."""

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str = "center"

    def to_json(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_config(cls, config: dict[str, Any], overrides: dict[str, Any]) -> "Preprocess":
        """timm's data configuration of a model, each part replaceable. SpecError for a part that does not exist."""
        known = [f.name for f in fields(cls)]
        for name in overrides:
            if name not in known:
                raise unknown("--preprocess part", name, known)
        merged = {name: config[name] for name in known if name in config} | overrides
        channels = merged["input_size"][0]
        for name in ("mean", "std"):
            values = merged[name] if isinstance(merged[name], Sequence) else (merged[name],)
            if len(values) != channels or not all(_number(v) and (name == "mean" or v > SMALLEST_STD) for v in values):
                raise SpecError(
                    f"--preprocess {name}={merged[name]} is not {channels} numbers{' above 0' if name == 'std' else ''}",
                    fix=f"one for each input channel: --preprocess {name}={','.join(['0.5'] * channels)}",
                )
            merged[name] = tuple(float(v) for v in values)
        for name, allowed in (("interpolation", INTERPOLATIONS), ("crop_mode", CROP_MODES)):
            if merged.get(name, allowed[0]) not in allowed:
                raise unknown(f"--preprocess {name}", str(merged[name]), allowed)
        if not (_number(merged["crop_pct"]) and 0 < merged["crop_pct"] <= 1):
            raise SpecError(f"--preprocess crop_pct={merged['crop_pct']}", fix="a number above 0, at most 1")
        return cls(**merged | {"input_size": tuple(merged["input_size"]), "crop_pct": float(merged["crop_pct"])})

    def tensor(self, image: Image.Image) -> Tensor:
        """One image as float32 (3, H, W)."""
        return _transform(self)(image.convert("L" if self.input_size[0] == 1 else "RGB"))


@functools.lru_cache(maxsize=8)
def _transform(preprocess: Preprocess) -> Callable[[Image.Image], Tensor]:
    """timm's own evaluation transform; made once, not once an image."""
    from timm.data import create_transform

    made: Callable[[Image.Image], Tensor] = create_transform(
        input_size=preprocess.input_size,
        is_training=False,
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        std=preprocess.std,
        crop_pct=preprocess.crop_pct,
        crop_mode=preprocess.crop_mode,
    )
    return made


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
