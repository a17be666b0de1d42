"""The settings of either ERQ paper, as values of QuantSpec: where the target `reference` starts from."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from erq_export.contract.registry import unknown
from erq_export.contract.spec import QuantSpec

# Source: docs/method.md, "The two published versions". λ, T and the number of images are the defaults of every run.
PUBLISHED: dict[str, dict[str, Any]] = {
    "icml": {
        "attention": "paper",
        "zero_points": "mean",
        "patch_input": "8",
        "dual": False,
        "fold_reduction": True,
        "weight_percentiles": "repq",
        "input_ranges": "quantized",
        "inputs": "float",
        "rounding": "paper",
        "row_steps": 0,
        "head_ridge": 1.0,
    },
    "tpami": {
        "attention": "paper",
        "zero_points": "mean",
        "patch_input": "float",
        "dual": True,
        "fold_reduction": False,
        "weight_percentiles": "wide",
        "input_ranges": "quantized",
        "inputs": "float",
        "rounding": "unit",
        "row_steps": 0,
        "head_ridge": 1.0,
    },
}


def settings(paper: str) -> dict[str, Any]:
    """The published values, by option. SpecError with the known names for another one."""
    if paper not in PUBLISHED:
        raise unknown("published setting", paper, PUBLISHED)
    return PUBLISHED[paper]


def as_words() -> Iterator[str]:
    """A line a paper: its settings as they are typed."""
    for paper, values in PUBLISHED.items():
        words = []
        for name, value in values.items():
            word = name.replace("_", "-")
            words.append(f"--{'' if value else 'no-'}{word}" if isinstance(value, bool) else f"--{word} {value}")
        yield f"--published {paper} is " + " ".join(words)


def published(quant: QuantSpec, paper: str) -> QuantSpec:
    """The paper's full scheme at the bits, seed and data of `quant`, for the target `reference` alone."""
    return replace(quant, targets=("reference",), method="erq", **settings(paper))
