"""GPTQ (Frantar et al. 2023): column after column, later columns absorb each one's error."""

from typing import Annotated, Literal

from msgspec import Meta

from .method import Method
from .options import FittedOptions


class GptqOptions(FittedOptions, frozen=True, kw_only=True):
    """GPTQ's knobs, with its authors' defaults."""

    damping: Annotated[
        float,
        Meta(
            gt=0,
            le=1e30,
            description="added to the Gram matrix's diagonal, as a share of its mean",
            extra={"fix": "a positive number; GPTQ uses 0.01"},
        ),
    ] = 0.01
    block: Annotated[
        int,
        Meta(
            ge=1,
            le=2**20,
            description="columns whose errors are handed on together; changes time, not the result",
            extra={"fix": "at least 1 column; GPTQ uses 128"},
        ),
    ] = 128
    order: Annotated[
        Literal["natural", "activation"], Meta(description="columns as they are, or strongest inputs first")
    ] = "natural"


METHOD = Method(
    name="gptq",
    meaning="columns in turn, each one's rounding error absorbed by those after it",
    options=GptqOptions,
    solver="erq_export.calibrate.solve.gptq:solve",
)
