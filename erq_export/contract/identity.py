"""Which model a bundle was made from: enough to build the same architecture again, and no machine paths."""

from typing import Literal

from erq_export.contract.preprocess import Preprocess
from erq_export.contract.records import Record, Sha256
from erq_export.contract.spec import Argument

Weights = Literal["pretrained", "checkpoint", "bundled", "random", "module"]


class Identity(Record, frozen=True, kw_only=True):
    """An architecture by its timm name and arguments, where its weights came from, and how images are prepared for it."""

    name: str
    timm_name: str
    model_args: dict[str, Argument]
    weights: Weights
    weights_sha256: Sha256 | None  # of the checkpoint; None where there was no file
    family: str
    preprocess: Preprocess
