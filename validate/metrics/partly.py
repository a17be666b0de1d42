"""The float model with some of its layers quantized: which modules stand in which place, while it runs stage by stage."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from erq_export.contract.bundle import Bundle
from erq_export.contract.parity import LARGEST
from erq_export.contract.sites import Stage, submodule
from erq_export.contract.unfolded import Map, Unfolded, What

Modules = Mapping[str, nn.Module]
CHUNK = 16  # images that go through the model together: hidden states of so many are held


@dataclass(frozen=True, kw_only=True)
class Partly:
    """A float model in a bundle's basis, with its stages; it is as it was when a run is over."""

    model: nn.Module
    stages: Sequence[Stage]

    def layers(self, bundle: Bundle, maps: Mapping[str, Map], what: What) -> dict[str, nn.Module]:
        """Every layer of a bundle of this basis as it stands in the float model; `maps` are what the bundle's folds do to
        inputs."""
        sites = [site for stage in self.stages for site in stage.sites]
        values = {site.values: maps[site.path] for site in sites if site.values is not None and site.path in maps}
        return {
            path: Unfolded(
                cast(nn.Linear, submodule(self.model, path, nn.Linear)),
                bundle.layers[path],
                what,
                before=maps.get(path),
                values=values.get(path),
            )
            for path in (site.path for site in sites)
        }

    def operands(self, bundle: Bundle) -> dict[str, nn.Module]:
        """Attention's operands of the bundle; none where attention stays float."""
        device = next(self.model.parameters()).device
        return {path: operand.module(path).to(device) for path, operand in bundle.operands.items()}

    @torch.inference_mode()
    def run(self, x: Tensor, modules: Modules, *, first: int = 0) -> list[Tensor]:
        """The hidden state x in front of the stage `first`, then behind it and every later one, with `modules` in place."""
        states = [x]
        with placed(self.model, modules):
            for stage in self.stages[first:]:
                states.append(stage.forward(states[-1]))
        return states


@contextmanager
def placed(model: nn.Module, modules: Modules) -> Iterator[None]:
    """The model with `modules` at their paths; its own return afterwards."""
    own = {path: model.get_submodule(path) for path in modules}
    try:
        for path, module in modules.items():
            model.set_submodule(path, module)
        yield
    finally:
        for path, module in own.items():
            model.set_submodule(path, module)


@dataclass
class Sums:
    """Σ‖ŷ − y‖² and Σ‖y‖², chunk by chunk."""

    error: float = 0.0
    size: float = 0.0

    def add(self, y_hat: Tensor, y: Tensor) -> None:
        self.error += float((y_hat.double() - y.double()).square().sum())
        self.size += float(y.double().square().sum())

    @property
    def relative(self) -> float:
        """Σ‖ŷ − y‖²/Σ‖y‖²; the largest float where it is no number."""
        if not math.isfinite(self.error):
            return LARGEST
        return self.error / self.size if self.size else self.error
