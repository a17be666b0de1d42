"""Where a quantized model loses: its error by depth, what each layer costs, and what 8 bits in it give back."""

import math
from typing import Annotated, Literal

from msgspec import Meta

from erq_export.contract.accuracy import Outputs
from erq_export.contract.manifest import Count, DesignedBits
from erq_export.contract.records import Record

SeenOn = Literal["held out", "not calibrated on", "calibrated on"]
RelativeError = Annotated[float, Meta(ge=0)]  # Σ‖ŷ − y‖² / Σ‖y‖²


def sqnr_db(error: float) -> float:
    """A relative squared error as a signal-to-quantization-noise ratio in dB; infinite where there is none."""
    return -10 * math.log10(error) if error else math.inf


class BlockError(Record, frozen=True, kw_only=True):
    """Relative squared errors of one block's output, every layer up to it quantized: its weights alone, its inputs alone, both;
    `entering` is that of the block's input with both."""

    path: str
    entering: RelativeError
    weights: RelativeError
    activations: RelativeError
    both: RelativeError


class LayerCost(Record, frozen=True, kw_only=True):
    """One layer's share of the loss, as relative squared errors of the model's outputs.

    alone: this layer quantized, all others float;  raised: all quantized as the run has them, this layer at w8a8.
    """

    path: str
    w_bits: DesignedBits
    a_bits: Annotated[int, Meta(ge=1, le=32)]
    n_weights: Count
    alone: RelativeError
    raised: RelativeError


class Story(Record, frozen=True, kw_only=True):
    """Measured on n_images in PyTorch against the float model; `error` is that of the outputs as the run has them.

    seen_on: which images: held-out ones, others of the calibration's source, or those of the calibration itself, on which
    errors look smaller than they are.  sensitivity: most costly first; empty where it was not asked for.
    """

    n_images: Count
    outputs: Outputs
    error: RelativeError
    depth: tuple[BlockError, ...]
    sensitivity: tuple[LayerCost, ...] = ()
    seen_on: SeenOn = "held out"
