"""What calibration puts in the place of a float module: a layer's or an operand's share of a bundle, and how it is installed."""

from typing import Protocol, Self

from torch import Tensor, nn


class Part(Protocol):
    """One quantized layer, or one operand of attention. Deployed ones stand in `quantized`, simulated ones in `simulated`."""

    def cpu(self) -> Self:
        """The same with its tensors on the CPU, where bundles live."""

    def stored(self) -> dict[str, Tensor]:
        """The tensors that a bundle's file holds, by their names in the part."""

    def module(self, path: str) -> nn.Module:
        """What computes with it, at this module path; a tensor of its state has the name that `stored` gives it."""


def install(model: nn.Module, path: str, part: Part) -> None:
    """Put a part's module in the place of the one at `path`."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, part.module(path))
