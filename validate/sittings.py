"""One sitting of a contest: every runner made anew, then all lines measured.

A session keeps the speed that its place in memory and its threads give it for as long as it lives; another one keeps another.
So a contest holds several sittings, and what differs between them is part of the interval (docs/bench.md, "The interval").

Letters:  y logits of a runner, y₀ of the first runner of the same subject
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from erq_export.contract.bench import BenchSpec, Inputs
from erq_export.contract.errors import DataError, ErqError
from erq_export.contract.progress import Progress

from .contestants import Entrant
from .rounds import LEAST_ROUNDS, Clock, Settling, Times, measured, order
from .runners import Runner

INPUTS: tuple[Inputs, ...] = ("resident", "host")
SEED = 0  # of the pixels: noise serves, speed does not depend on the values
LEAST_SAMPLES = 10  # of a line, however short its seconds
MIB = 2**20
Place = tuple[int, Inputs]  # batch and where the inputs lie


@dataclass(kw_only=True)
class Sitting:
    """What one found: times of every place, and of every entrant in its order the logits' error by batch, what it took of the
    GPU's memory in MiB, and its products by format; settling: of every place, the times so far, of earlier sittings as well."""

    times: dict[Place, Times] = field(default_factory=dict)
    errors: dict[int, list[float | None]] = field(default_factory=dict)
    device_mib: list[float | None] = field(default_factory=list)
    products: list[dict[str, int]] = field(default_factory=list)
    settling: dict[Place, list[Settling]] = field(default_factory=dict)


def sit(
    entrants: Sequence[Entrant],
    asked: BenchSpec,
    input_size: tuple[int, int, int],
    *,
    number: int,
    threads: int,
    clock: Clock = time.perf_counter_ns,
    progress: Progress = lambda *_: None,
    before: Sitting | None = None,
) -> Sitting:
    """Sitting `number` of `asked.sittings`, with its share of the samples and of the seconds; `before` is the one before it.

    Who is made first and who runs first changes from one to the next. DataError where a foreign graph does not take the images.
    """
    made = {i: _made(entrants[i], threads) for i in order(number, len(entrants))}
    runners = [made[i][0] for i in range(len(entrants))]
    found = Sitting(
        device_mib=[made[i][1] for i in range(len(entrants))],
        products=[getattr(runner, "products", {}) for runner in runners],
        settling={} if before is None else before.settling,
    )
    for batch in asked.batch:
        pixels = torch.randn(batch, *input_size, generator=torch.Generator().manual_seed(SEED))
        found.errors[batch] = logits_errors(
            entrants, [_logits(e, r, pixels) for e, r in zip(entrants, runners, strict=True)]
        )
        for inputs in INPUTS:
            where = f"batch {batch}, {threads or 'no'} threads, {inputs} inputs"
            found.times[batch, inputs] = measured(
                runners,
                pixels,
                inputs=inputs,
                samples=math.ceil(asked.samples / asked.sittings),
                seconds=asked.seconds / asked.sittings,
                least=max(LEAST_ROUNDS, math.ceil(LEAST_SAMPLES / asked.sittings)),
                turn=2 * number,
                settling=found.settling.setdefault((batch, inputs), [Settling() for _ in runners]),
                clock=clock,
                progress=progress,
                what=f"sitting {number + 1} of {asked.sittings}, {where}",
            )
    return found


def logits_errors(entrants: Sequence[Entrant], logits: Sequence[Tensor]) -> list[float | None]:
    """‖y − y₀‖/‖y₀‖ of every entrant but the first of its subject, for which it is None."""
    first: dict[str, Tensor] = {}
    found: list[float | None] = []
    for entrant, y in zip(entrants, logits, strict=True):
        y0 = first.setdefault(entrant.subject.name, y)
        found.append(None if y0 is y else float((y - y0).norm() / y0.norm()))
    return found


def _made(entrant: Entrant, threads: int) -> tuple[Runner, float | None]:
    """The runner, and what it took of the GPU's memory in MiB."""
    if entrant.how.device == "cpu":
        return entrant.how.make(entrant.subject, threads, entrant.name), None
    free = torch.cuda.mem_get_info()[0]
    runner = entrant.how.make(entrant.subject, threads, entrant.name)
    return runner, max(0, free - torch.cuda.mem_get_info()[0]) / MIB


def _logits(entrant: Entrant, runner: Runner, pixels: Tensor) -> Tensor:
    """The first run; DataError that names the foreign file where it does not take the images."""
    try:
        y = runner.logits(pixels)
    except ErqError as e:
        if entrant.subject.role != "foreign":
            raise
        shape = " × ".join(map(str, pixels.shape))
        raise DataError(
            f"--against {entrant.subject.name} does not take images of shape {shape}: {e.problem}",
            fix="a graph of the same input; one of a fixed batch with --batch of that size",
        ) from e
    if len(y) != len(pixels):
        raise DataError(
            f"{entrant.subject.name} gives {len(y)} rows for {len(pixels)} images", fix="a graph that gives one each"
        )
    return y
