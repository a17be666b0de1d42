"""Which model a bundle was made from: enough to build the same architecture again, and no machine paths."""

from dataclasses import dataclass
from typing import Any

from erq_export.contract.preprocess import Preprocess


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Everything needed to build the same architecture again, and where the weights came from. No machine paths."""

    name: str
    timm_name: str
    model_args: dict[str, Any]
    weights: str  # "pretrained", "checkpoint", "bundled" or "random"
    weights_sha256: str | None
    family: str
    preprocess: Preprocess
