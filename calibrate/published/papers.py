"""The settings of either ERQ paper, as presets of the method `erq`: where the target `reference` starts from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from msgspec import structs

from erq_export.contract.records import Scalar
from erq_export.contract.registry import unknown
from erq_export.contract.spec import AttentionPrecision, Quantization
from erq_export.contract.targets import grid_rules

from ..methods.method import options_of
from ..methods.options import Options


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Precision of attention and the options of `erq`; T and the number of images are every run's
    defaults, λ is the model's (`models.aliases`)."""

    attention: AttentionPrecision
    options: Mapping[str, Scalar]


# docs/method.md, "Hyper-parameters"
PAPERS: dict[str, Paper] = {
    "icml": Paper(
        attention="paper",
        options={
            "zero_points": "mean",
            "patch_input": "8",
            "dual": False,
            "fold_reduction": True,
            "fold_values": False,
            "rotate": "none",
            "weight_percentiles": "repq",
            "input_ranges": "quantized",
            "input_percentiles": "repq",
            "range_error": "input",
            "inputs": "float",
            "rounding": "paper",
            "row_steps": 0,
            "patch_factor": 10.0,
            "class_weight": 1.0,
            "head_ridge": 1.0,
        },
    ),
    "tpami": Paper(
        attention="paper",
        options={
            "zero_points": "mean",
            "patch_input": "float",
            "dual": True,
            "fold_reduction": False,
            "fold_values": False,
            "rotate": "none",
            "weight_percentiles": "wide",
            "input_ranges": "quantized",
            "input_percentiles": "repq",
            "range_error": "input",
            "inputs": "float",
            "rounding": "unit",
            "row_steps": 0,
            "patch_factor": 10.0,
            "class_weight": 1.0,
            "head_ridge": 1.0,
        },
    ),
}


def paper_named(name: str) -> Paper:
    """The paper of that name; SpecError with the known names for another one."""
    if name not in PAPERS:
        raise unknown("published setting", name, PAPERS)
    return PAPERS[name]


def as_words() -> Iterator[str]:
    """A line a paper: its settings as they are typed."""
    for name, paper in PAPERS.items():
        words = [f"-O {option}={str(value).lower()}" for option, value in paper.options.items()]
        yield f"--published {name} is --attention {paper.attention} " + " ".join(words)


def published(asked: Quantization, name: str, *, ridge: float) -> Quantization:
    """The paper's full scheme at the bits of `asked`, for the target `reference` alone; T as there, if it is ERQ's.

    ridge: the paper's λ for the model, where `asked` has no number of its own.
    """
    paper, own = paper_named(name), asked.options if asked.method == "erq" else {}
    λ = ridge if own.get("ridge", "auto") == "auto" else own["ridge"]
    options: Options = options_of("erq", {**own, **paper.options, "ridge": λ})
    return structs.replace(
        asked, method="erq", options=all_of(options), attention=paper.attention, rules=grid_rules(["reference"])
    )


def all_of(options: Options) -> dict[str, Scalar]:
    """Every option with its value, by name."""
    return structs.asdict(options)
