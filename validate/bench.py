"""Contests: what runs on one device measured in turns, batch by batch, every line beside the first, its twin.

Letters:  y logits of a runner, y₀ of the first runner of the same subject
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from erq_export.contract.bench import BenchSpec, Inputs, Line
from erq_export.contract.errors import DataError, ErqError, MachineError, SpeedError
from erq_export.contract.progress import Progress

from .bootstrap import speedup
from .contestants import KINDS, Kind, Subject, takers
from .latency import timing
from .rounds import Clock, measured
from .runners import Runner

INPUTS: tuple[Inputs, ...] = ("resident", "host")
SEED = 0  # of the pixels: noise serves, speed does not depend on the values
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A subject and the kind of runner that runs it."""

    subject: Subject
    kind: str
    how: Kind

    @property
    def name(self) -> str:
        return f"{self.subject.name} in {self.kind}"


@dataclass(kw_only=True)
class Entry:
    """Who takes part on each device, twin first, and who does not, with the reason."""

    by_device: dict[str, list[Entrant]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def enter(subjects: Sequence[Subject], asked: Iterable[str], *, kinds: Mapping[str, Kind] = KINDS) -> Entry:
    """Every subject in every kind of runner that takes it and that this machine has.

    MachineError for a kind that was asked for by name and is not here, or for a foreign engine that cannot run here; others
    are skipped with the reason.
    """
    entry, named = Entry(), frozenset(asked)
    for subject in subjects:
        found = takers(subject, named, kinds)
        if not found:
            entry.skipped[subject.name] = "no runner takes it here"
        for kind in found:
            how = kinds[kind]
            try:
                how.check()
                how.fits(subject)
            except MachineError as e:
                if kind in named or (subject.role == "foreign" and subject.takes == "engine"):
                    raise
                entry.skipped[f"{subject.name} in {kind}"] = e.problem
                continue
            entry.by_device.setdefault(how.device, []).append(Entrant(subject=subject, kind=kind, how=how))
    return entry


def contest(
    entrants: Sequence[Entrant],
    asked: BenchSpec,
    input_size: tuple[int, int, int],
    *,
    threads: int,
    clock: Clock | None = None,
    progress: Progress = lambda *_: None,
) -> Iterator[Line]:
    """The lines of one device with so many threads (0: a GPU's): for every batch, resident inputs, then from the host.

    The first entrant is the twin of the others. DataError where a foreign graph does not take the images.
    """
    made = [_made(entrant, threads) for entrant in entrants]
    runners = [runner for runner, _ in made]
    for batch in asked.batch:
        pixels = torch.randn(batch, *input_size, generator=torch.Generator().manual_seed(SEED))
        errors = logits_errors(entrants, [_logits(e, r, pixels) for e, r in zip(entrants, runners, strict=True)])
        for inputs in INPUTS:
            what = f"batch {batch}, {threads or 'no'} threads, {inputs} inputs"
            words = {} if clock is None else {"clock": clock}
            found = measured(
                runners,
                pixels,
                inputs=inputs,
                samples=asked.samples,
                seconds=asked.seconds,
                progress=progress,
                what=what,
                **words,
            )
            for i, entrant in enumerate(entrants):
                yield Line(
                    subject=entrant.subject.name,
                    runner=entrant.kind,
                    role=entrant.subject.role,
                    device=entrant.how.device,
                    batch=batch,
                    threads=threads,
                    inputs=inputs,
                    samples=len(found.t),
                    warm_up=found.warm_up,
                    settled=found.settled[i],
                    **_percentiles(found.t[:, i], batch),
                    bytes=entrant.subject.bytes,
                    device_mib=made[i][1],
                    products=getattr(runners[i], "products", {}),
                    logits_error=errors[i],
                    speedup=speedup(found.t[:, 0], found.t[:, i], than=entrants[0].name) if i else None,
                )


def logits_errors(entrants: Sequence[Entrant], logits: Sequence[Tensor]) -> list[float | None]:
    """‖y − y₀‖/‖y₀‖ of every entrant but the first of its subject, for which it is None."""
    first: dict[str, Tensor] = {}
    found: list[float | None] = []
    for entrant, y in zip(entrants, logits, strict=True):
        y0 = first.setdefault(entrant.subject.name, y)
        found.append(None if y0 is y else float((y - y0).norm() / y0.norm()))
    return found


def gate(lines: Sequence[Line], factor: float) -> list[str]:
    """The lines of ours that are not shown to be `factor` times as fast as their twin, in words.

    What counts is the interval's lower end, inputs resident, in the runner that the twin runs in.
    """
    judged = [line for line in lines if line.role == "ours" and line.inputs == "resident" and line.speedup is not None]
    own = [line for line in judged if line.speedup and line.speedup.than.endswith(f" in {line.runner}")]
    chosen = own or judged
    if not chosen:
        return [f"nothing of the run was timed beside a twin, --require-speedup {factor:g} wants it shown"]
    return [
        f"{line.name}, batch {line.batch}, {line.threads} threads: {line.speedup.told} as fast as {line.speedup.than}, "
        f"--require-speedup {factor:g} wants the lower end above"
        for line in chosen
        if line.speedup is not None and line.speedup.low < factor
    ]


def raise_gate(problems: Sequence[str]) -> None:
    """SpeedError, exit code 7, where there are any."""
    if problems:
        raise SpeedError(
            "; ".join(problems), fix="the notes of the benchmark say what to try; or a smaller --require-speedup"
        )


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


def _percentiles(t: NDArray[np.float64], batch: int) -> dict[str, float]:
    found = timing(t)
    figures = {name: getattr(found, name) for name in found.__struct_fields__}
    return figures | {"images_per_s": 1e3 * batch / found.p50_ms}
