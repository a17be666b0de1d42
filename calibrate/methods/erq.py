"""ERQ (ICML 2024): absorb the activations' error in the weights, then quantize the weights half by half."""

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from .method import Method
from .options import ClassWeight, FittedOptions, Rotate

LARGEST_RIDGE = 1e30
POSITIVE = {"fix": "auto, or a positive number; the paper uses 1e4 (DeiT-T 1e3)"}


class ErqOptions(FittedOptions, frozen=True, kw_only=True):
    """ERQ's knobs. Defaults are the paper's, or better ones where a benchmark shows it (docs/beyond-the-paper.md)."""

    SIMULATED: ClassVar[dict[str, Any]] = FittedOptions.SIMULATED | {"dual": True}

    class_weight: ClassWeight = "root"
    rotate: Rotate = "auto"
    ridge: Annotated[
        Annotated[float, Meta(gt=0, le=LARGEST_RIDGE)] | Literal["auto"],
        Meta(
            description="the paper's λ = λ₁ = λ₂, 0.1·λ is added to the summed Gram matrix; auto: of each layer, what does "
            "best on calibration images it was not fitted to",
            extra=POSITIVE,
        ),
    ] = "auto"
    patch_factor: Annotated[
        float,
        Meta(
            gt=0,
            le=1e6,
            description="the patch embedding's λ as a multiple of the other layers' (10: as published)",
            extra={"fix": "a positive number; 10 is the published method"},
        ),
    ] = 1.0
    head_ridge: Annotated[
        Annotated[float, Meta(gt=0, le=LARGEST_RIDGE)] | None,
        Meta(
            description="λ of the head's activation step (default: ridge; 1: as published)",
            extra={"fix": "a positive number; 1 is the published method"},
        ),
    ] = None
    rounding: Annotated[
        Literal["flip", "paper", "none", "mipq", "unit"], Meta(description="rounding refinement's rule")
    ] = "flip"
    flips: Annotated[
        int,
        Meta(
            ge=0,
            le=10**6,
            description="most flips per weight row and round (the paper's T)",
            extra={"fix": "0 or more; the paper uses 100"},
        ),
    ] = 100
    row_steps: Annotated[
        int,
        Meta(
            ge=0,
            le=10**6,
            description="most steps per row after the last half, beyond the paper (0: off, as published)",
            extra={"fix": "0 or more; 0 is the published method"},
        ),
    ] = 100
    dual: Annotated[
        bool,
        Meta(description="--to reference: outlier columns of qkv and fc1 on a second grid, without row steps there"),
    ] = False
    mipq_columns: Annotated[
        int,
        Meta(
            ge=1,
            le=20,
            description="rounding=mipq, for ablations on small models (hours): columns per program",
            extra={"fix": "1 to 20; 8 take 0.05 s a program, 16 seconds"},
        ),
    ] = 8
    mipq_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=1e6,
            description="rounding=mipq: time limit of each program, of which a layer has thousands",
            extra={"fix": "a positive number of seconds"},
        ),
    ] = 1.0

    mipq_limit: Annotated[
        float,
        Meta(
            gt=0,
            le=1e9,
            description="rounding=mipq: the most seconds that all programs together may take, known before they start",
            extra={"fix": "a positive number of seconds; an hour is 3600"},
        ),
    ] = 86400.0


METHOD = Method(
    name="erq",
    meaning="ridge-regression error reduction (Aqer, Wqer) with rounding refinement",
    options=ErqOptions,
    solver="erq_export.calibrate.solve.erq:solve",
)
