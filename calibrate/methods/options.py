"""What every method's options have in common: the quantizers that a method chooses integers for."""

from math import sqrt
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from erq_export.contract.bits import ACTIVATION_BITS
from erq_export.contract.records import Spec

Inputs = Literal["float", "quantized"]
Rotate = Annotated[
    Literal["auto", "all", "none"],
    Meta(
        description="residual streams and attention's values in a basis in which no channel stands out: those whose layers "
        "are foretold to lose less there, all, or none (as published)"
    ),
]
ClassWeight = Annotated[
    Annotated[float, Meta(ge=1, le=1e6)] | Literal["root"],
    Meta(
        description="how many rows the class token counts for in a fit; root: the root of the number of tokens",
        extra={"fix": "root, or a number from 1; 1 is as published"},
    ),
]


class Options(Spec, frozen=True, kw_only=True):
    """Options of any method: ranges and bits of the quantizers. A method adds its own knobs (`-O NAME=VALUE`)."""

    # what no target can run: allowed for `--to reference` alone
    SIMULATED: ClassVar[dict[str, Any]] = {"patch_input": "float"}

    input_ranges: Annotated[
        Inputs, Meta(description="input ranges from float activations, or behind quantized ones (as published)")
    ] = "float"
    range_error: Annotated[
        Literal["output", "input"],
        Meta(description="input ranges by the error of the layer's output, or of the input itself (as published)"),
    ] = "output"
    input_percentiles: Annotated[
        Literal["full", "repq"],
        Meta(description="input ranges searched: RepQ's 3 percentiles and the largest value, or RepQ's alone"),
    ] = "full"
    weight_percentiles: Annotated[
        Literal["wide", "repq"],
        Meta(description="weight ranges searched: the extended paper's 10 percentiles or RepQ's 3"),
    ] = "wide"
    attention_bits: Annotated[
        int,
        Meta(
            ge=ACTIVATION_BITS[0],
            le=ACTIVATION_BITS[-1],
            description="--attention int8: designed bits of q, k, v and softmax",
            extra={"fix": "3 to 8"},
        ),
    ] = 8
    patch_input: Annotated[
        Literal["8", "float"], Meta(description="--to reference: bits of the image, or not quantized")
    ] = "8"

    @classmethod
    def word(cls, name: str) -> str:
        return f"-O {name}"

    def folds(self, role: str) -> bool:  # noqa: ARG002 - methods that fold look at it
        """Is what makes the input of a layer of this role reparameterised, where it can be?"""
        return False

    @property
    def rotated(self) -> Rotate:
        """What is calibrated in a basis in which no channel stands out."""
        return "none"

    @property
    def mean_zero(self) -> bool:
        """Does a folded grid keep the mean zero point, which is no integer?"""
        return False

    def weight_of_leading(self, tokens: int) -> float:  # noqa: ARG002 - methods that fit look at it
        """How many rows the class token of an image with so many tokens counts for."""
        return 1.0

    @property
    def deployed_inputs(self) -> bool:
        """Are layers fitted to what the quantized layers before them produce?"""
        return False


class FoldOptions(Options, frozen=True, kw_only=True):
    """Options of the methods that fold LayerNorms (RepQ-ViT's reparameterisation)."""

    SIMULATED: ClassVar[dict[str, Any]] = Options.SIMULATED | {"zero_points": "mean"}

    fold_reduction: Annotated[
        bool, Meta(description="fold the LayerNorm before Swin's reduction too, as RepQ-ViT does")
    ] = True
    zero_points: Annotated[
        Literal["integer", "mean"],
        Meta(description="--to reference: after the LayerNorm fold rounded, or the mean as published"),
    ] = "integer"

    fold_values: Annotated[
        bool,
        Meta(description="fold the grid of proj's input into the values that attention averages, as for a LayerNorm"),
    ] = True

    rotate: Rotate = "none"

    def folds(self, role: str) -> bool:
        return {"reduction": self.fold_reduction, "proj": self.fold_values}.get(role, True)

    @property
    def rotated(self) -> Rotate:
        return self.rotate

    @property
    def mean_zero(self) -> bool:
        return self.zero_points == "mean"


class FittedOptions(FoldOptions, frozen=True, kw_only=True):
    """Options of the methods that fit a layer's weights to its inputs."""

    inputs: Annotated[
        Inputs,
        Meta(description="layers are fitted to the float model's inputs, or to those that quantized layers produce"),
    ] = "float"

    class_weight: ClassWeight = 1.0

    def weight_of_leading(self, tokens: int) -> float:
        return sqrt(tokens) if self.class_weight == "root" else float(self.class_weight)

    @property
    def deployed_inputs(self) -> bool:
        return self.inputs == "quantized"
