"""Runners on a machine of our own: a clock in nanoseconds, and calls that let it pass, with noise and drift."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

MS = 1_000_000  # nanoseconds


class Machine:
    """slowness: by what everything is multiplied at a time in nanoseconds. Every run is noted."""

    def __init__(self, *, seed: int = 0, noise: float = 0.0, slowness: Callable[[int], float] = lambda _: 1.0) -> None:
        self.now, self.noise, self.slowness = 0, noise, slowness
        self.chance = np.random.default_rng(seed)
        self.ran: list[str] = []

    def clock(self) -> int:
        return self.now

    def spend(self, name: str, ms: float) -> None:
        self.ran.append(name)
        factor = self.slowness(self.now) * (1 + self.noise * self.chance.exponential())
        self.now += round(MS * ms * factor)

    def runner(self, name: str, ms: float, **changes: float) -> "Simulated":
        return Simulated(self, name, ms, **changes)


class Simulated:
    """resident and host runs take ms and ms + copies; the first `slow` of them ten times as long."""

    def __init__(self, machine: Machine, name: str, ms: float, *, copies: float = 0.0, slow: int = 0) -> None:
        self.machine, self.name, self.ms, self.copies, self.slow = machine, name, ms, copies, slow
        self.device = torch.device("cpu")

    def _spend(self, ms: float) -> None:
        self.machine.spend(self.name, 10 * ms if self.slow > 0 else ms)
        self.slow -= 1

    def logits(self, pixels: Tensor) -> Tensor:
        self._spend(self.ms * len(pixels) + self.copies)
        return torch.ones(len(pixels), 4)

    def prepared(self, pixels: Tensor) -> Callable[[], None]:
        return lambda: self._spend(self.ms * len(pixels))

    def synchronize(self) -> None:
        """Nothing is enqueued."""
