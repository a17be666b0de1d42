"""How an image becomes a tensor: evaluation preprocessing, validated at birth."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

from erq_export.contract.errors import SpecError
from erq_export.contract.registry import unknown

INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming")
CROP_MODES = ("center", "squash", "border")
SMALLEST_STD = 1e-6  # of pixels in [0, 1]; float32 would turn much less into infinite values
LARGEST = 1e3  # mean or std of pixels in [0, 1]; more is another unit
SMALLEST_CROP = 0.05  # of the resized image's side; less blows a picture up twentyfold to cut the middle out
MOST_PIXELS = 2**16  # a side of the model's input
CHANNELS = (1, 3)  # what an image can be converted to


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
        for name in ("input_size", "mean", "std", "interpolation", "crop_pct"):
            if name not in merged:
                raise SpecError(f"the model's configuration says nothing of {name}", fix=f"--preprocess {name}=VALUE")
        size = merged["input_size"]
        if not (_numbers(size, 3) and all(type(n) is int and 1 <= n <= MOST_PIXELS for n in size)):
            raise SpecError(
                f"--preprocess input_size={_short(size)} is not channels, height and width of 1 to {MOST_PIXELS}",
                fix="for example --preprocess input_size=3,224,224, as the model has it",
            )
        for name in ("mean", "std"):
            values = merged[name] if isinstance(merged[name], Sequence) else (merged[name],)
            if not (_numbers(values, size[0]) and all(-LARGEST <= v <= LARGEST for v in values)) or (
                name == "std" and min(values) <= SMALLEST_STD
            ):
                between = "-1000 to 1000" if name == "mean" else f"more than {SMALLEST_STD:g}, at most 1000"
                raise SpecError(
                    f"--preprocess {name}={_short(merged[name])} is not {size[0]} numbers of {between}",
                    fix=f"one for each input channel: --preprocess {name}={','.join(['0.5'] * min(size[0], 8))}",
                )
            merged[name] = tuple(float(v) for v in values)
        for name, allowed in (("interpolation", INTERPOLATIONS), ("crop_mode", CROP_MODES)):
            if merged.get(name, allowed[0]) not in allowed:
                raise unknown(f"--preprocess {name}", _short(merged[name]), allowed)
        if not (_number(merged["crop_pct"]) and SMALLEST_CROP <= merged["crop_pct"] <= 1):
            raise SpecError(
                f"--preprocess crop_pct={_short(merged['crop_pct'])}",
                fix=f"a number above 0, at most 1 (and at least {SMALLEST_CROP}: it would enlarge every picture)",
            )
        return cls(**merged | {"input_size": tuple(size), "crop_pct": float(merged["crop_pct"])})

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of an image of this size after resizing, before cropping: by the side that needs it most, in
        proportion, where the mode keeps proportions."""
        height, width = (round(n / self.crop_pct) for n in self.input_size[1:])
        if self.crop_mode != "center":
            return width, height
        factor = max(width / size[0], height / size[1])
        return round(size[0] * factor), round(size[1] * factor)

    def tensor(self, image: Image.Image) -> "Tensor":
        """One image as float32 (3, H, W), or (1, H, W) for a grey model. SpecError for a model of other channels."""
        if self.input_size[0] not in CHANNELS:
            raise SpecError(
                f"the model takes {self.input_size[0]} channels, an image has 1 or 3",
                fix="--model-arg in_chans=3, or a checkpoint of such a model",
            )
        return _transform(self)(image.convert("L" if self.input_size[0] == 1 else "RGB"))


@functools.lru_cache(maxsize=8)
def _transform(preprocess: Preprocess) -> Callable[[Image.Image], "Tensor"]:
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
    """Finite, no truth value; compared, not converted: an integer may be larger than any float."""
    return type(value) in (int, float) and -math.inf < value < math.inf


def _numbers(values: Any, n: int) -> bool:
    return isinstance(values, list | tuple) and len(values) == n and all(map(_number, values))


def _short(value: Any) -> str:
    """As it may be shown: an integer can have more digits than Python prints."""
    try:
        return str(value)[:80]
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"
