"""Contests: what runs on one device measured in turns, batch by batch, every line beside the first, its twin."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from erq_export.contract.bench import BenchSpec, Inputs, Line
from erq_export.contract.errors import MachineError, SpeedError
from erq_export.contract.progress import Progress

from .bootstrap import speedup
from .contestants import KINDS, Entrant, Kind, Subject, takers
from .latency import timing
from .rounds import Clock
from .sittings import INPUTS, Sitting, sit


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
    clock: Clock = time.perf_counter_ns,
    progress: Progress = lambda *_: None,
) -> list[Line]:
    """The lines of one device with so many threads (0: a GPU's): for every batch, resident inputs, then from the host.

    The first entrant is the twin of the others. DataError where a foreign graph does not take the images.
    """
    sat: list[Sitting] = []
    for number in range(asked.sittings):
        before = sat[-1] if sat else None
        sat.append(
            sit(
                entrants,
                asked,
                input_size,
                number=number,
                threads=threads,
                clock=clock,
                progress=progress,
                before=before,
            )
        )
    return [
        line
        for batch in asked.batch
        for inputs in INPUTS
        for line in _lines(entrants, sat, batch=batch, inputs=inputs, threads=threads)
    ]


def _lines(
    entrants: Sequence[Entrant], sat: Sequence[Sitting], *, batch: int, inputs: Inputs, threads: int
) -> Iterator[Line]:
    """One line an entrant: percentiles of all its times, its ratio sitting by sitting."""
    times = [sitting.times[batch, inputs] for sitting in sat]
    for i, entrant in enumerate(entrants):
        own, twin = [one.t[:, i] for one in times], [one.t[:, 0] for one in times]
        yield Line(
            subject=entrant.subject.name,
            runner=entrant.kind,
            role=entrant.subject.role,
            device=entrant.how.device,
            batch=batch,
            threads=threads,
            inputs=inputs,
            samples=sum(map(len, own)),
            warm_up=sum(one.warm_up for one in times),
            settled=times[-1].settled[i],
            **_percentiles(np.concatenate(own), batch),
            bytes=entrant.subject.bytes,
            device_mib=sat[0].device_mib[i],
            products=sat[0].products[i],
            logits_error=sat[0].errors[batch][i],
            speedup=speedup(twin, own, than=entrants[0].name) if i else None,
        )


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


def _percentiles(t: NDArray[np.float64], batch: int) -> dict[str, float]:
    found = timing(t)
    figures = {name: getattr(found, name) for name in found.__struct_fields__}
    return figures | {"images_per_s": 1e3 * batch / found.p50_ms}
