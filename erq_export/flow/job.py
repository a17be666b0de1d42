"""One run as asked for: what goes in, where it goes, what is compared. Written to the output folder, read back by stages."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from erq_export import __version__
from erq_export.calibrate.published.papers import PUBLISHED, settings
from erq_export.contract.errors import SpecError
from erq_export.contract.files import RUN_FORMAT
from erq_export.contract.spec import Bits, ModelSpec, QuantSpec, option


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything `erq-export MODEL` was told, besides how to print."""

    model: ModelSpec
    quant: QuantSpec
    out: Path
    data: Path | None = option(None, "folder of images to calibrate from, searched recursively")
    val: Path | None = option(None, "labelled folder (one folder per class) to measure accuracy on")
    class_map: Path | None = option(None, "file that gives each class folder its index: FOLDER [INDEX] a line")
    val_images: int = option(0, "measure on this many images, evenly spread over --val (0: all)")
    compare: tuple[Bits, ...] = option((), "measure these bits too, against rtn, over --seeds (repeatable)")
    seeds: int = option(1, "calibration seeds of the comparison")
    capability: tuple[str, ...] = option(("8.6", "8.9", "12.0"), "GPU compute capability to build for (repeatable)")
    max_batch: int = option(32, "largest batch of the engine; it is tuned for batch 8 or this, if smaller")
    device: str = option("auto", "where to calibrate: auto, cpu, cuda, cuda:1 …")
    max_drop: float | None = option(None, "fail (exit 4) if top-1 drops more than this many points below float")

    published: str | None = option(None, f"--to reference: start from the settings of a paper: {', '.join(PUBLISHED)}")

    def __post_init__(self) -> None:
        if self.published is not None:
            settings(self.published)
            if "reference" not in self.quant.targets:
                raise SpecError(
                    f"--published {self.published} is a setting of the target reference: parts of it cannot be deployed",
                    fix="--to reference; or, deployable: --rounding paper --row-steps 0 --head-ridge 1",
                )
        for name, least in (("val_images", 0), ("seeds", 1), ("max_batch", 1)):
            if getattr(self, name) < least:
                raise SpecError(f"--{name.replace('_', '-')} {getattr(self, name)}", fix=f"at least {least}")

    @property
    def batch(self) -> tuple[int, int, int]:
        """(smallest, optimal, largest) batch of an engine."""
        return 1, min(8, self.max_batch), self.max_batch

    def to_json(self) -> dict[str, Any]:
        """Plain data for run.json; paths absolute, so that a stage can run again from any folder."""
        data = asdict(self) | {"quant": self.quant.to_json(), "compare": [str(b) for b in self.compare]}
        del data["out"]
        if self.model.checkpoint is not None:
            data["model"]["checkpoint"] = str(Path(self.model.checkpoint).absolute())
        plain = {k: str(v.absolute()) if isinstance(v, Path) else v for k, v in data.items()}
        return {"format": RUN_FORMAT, "erq_export": __version__, **plain}

    @classmethod
    def from_json(cls, data: dict[str, Any], out: Path) -> "Job":
        """Inverse of `to_json`."""
        own = {k: v for k, v in data.items() if k not in ("format", "erq_export")}
        for name in ("data", "val", "class_map"):
            own[name] = None if own[name] is None else Path(own[name])
        return cls(
            **own
            | {
                "out": out,
                "model": ModelSpec(**own["model"]),
                "quant": QuantSpec.from_json(own["quant"]),
                "compare": tuple(Bits.parse(b) for b in own["compare"]),
                "capability": tuple(own["capability"]),
            }
        )
