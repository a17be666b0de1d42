"""What the tables of detectors share: average precision of every setting over seeds, beside float and beside other methods."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from erq_export.contract.errors import SpecError
from erq_export.flow.detection import found as finding
from erq_export.flow.detection.work import DetectorWork, begin
from erq_export.flow.job import Job
from erq_export.flow.store.store import Store
from erq_export.flow.ui import Ui
from erq_export.validate.metrics.average_precision import Found
from erq_export.validate.metrics.resampled import interval, matched, samples

Kind = Literal["box", "mask"]
KINDS: tuple[Kind, ...] = ("box", "mask")
DRAWS = 300  # of every interval's bootstrap; one takes some milliseconds for each detector


@dataclass(frozen=True, kw_only=True)
class Score:
    """Average precision, and what it is on drawings of the pictures."""

    ap: float
    samples: NDArray[np.float64]


Kinds = Mapping[Kind, Score]
Asked = Callable[[str, int], Job]  # setting, seed


def fields(setting: str) -> dict[str, Any]:
    """ "w4a4 erq" and "w4a4 erq 1" as fields of a job: bits, method, and how many pictures are calibrated on."""
    words = setting.split()
    if len(words) not in (2, 3) or not all(word.isdigit() for word in words[2:]):
        raise SpecError(f"--settings {setting!r}", fix='bits and method, for example "w4a4 erq" or "w4a4 erq 1"')
    return {"bits": words[0], "method": words[1]} | ({"calib": int(words[2])} if words[2:] else {})


def measured(work: DetectorWork, found: Sequence[Found]) -> Kinds:
    """Beside what is on the pictures."""
    if work.measured_on is None:
        raise SpecError("there is nothing to find", fix="--coco DIR, a folder in COCO's layout")
    truth = work.measured_on.truth(work.pictures)
    every = {kind: matched(truth, found, kind) for kind in KINDS}
    return {kind: Score(ap=one.ap(), samples=samples(one, DRAWS)) for kind, one in every.items()}


def of_model(name: str, asked: Asked, settings: Sequence[str], seeds: int, store: Store, ui: Ui) -> dict[str, Any]:
    """The float detector's figures, and those of every setting over the seeds."""
    if seeds < 1:
        raise SpecError(f"--seeds {seeds}", fix="at least 1")
    work = begin(asked(settings[0], 0), ui, store)
    exact = measured(work, finding.of_float(work))
    row: dict[str, Any] = {"model": name, "pictures": len(work.pictures), "settings": []}
    row["float"] = {kind: exact[kind].ap for kind in KINDS}
    kept: dict[tuple[str, int], Kinds] = {}
    for setting in settings:
        for seed in range(seeds):
            work = begin(asked(setting, seed), ui, store)
            bundle = work.stages.bundle(work.model, work.calibration_images(seed), work.job.quantization)
            kept[setting, seed] = measured(work, finding.of_reference(work, bundle))
            figures = {kind: round(kept[setting, seed][kind].ap, 2) for kind in KINDS}
            print(f"{name} {setting} seed {seed}: {figures}", flush=True)
        row["settings"].append(summed(setting, [kept[setting, seed] for seed in range(seeds)], exact))
    row["beaten"] = beaten(settings, seeds, kept)
    return row


def summed(setting: str, found: Sequence[Kinds], exact: Kinds) -> dict[str, Any]:
    """Mean and spread over the seeds, share of float, and the interval of the mean's points beside float."""
    row: dict[str, Any] = {"setting": setting}
    for kind in KINDS:
        every = [one[kind].ap for one in found]
        low, high = interval(mean_samples(found, kind), exact[kind].samples)
        row[kind] = {
            "all": every,
            "mean": statistics.fmean(every),
            "std": statistics.stdev(every) if len(every) > 1 else 0.0,
            "share": 100 * statistics.fmean(every) / max(exact[kind].ap, 1e-9),
            "low": low,
            "high": high,
        }
    return row


def mean_samples(found: Sequence[Kinds], kind: Kind) -> NDArray[np.float64]:
    """(DRAWS,) the mean over seeds on every drawing of the pictures, which is the same for all of them."""
    return np.stack([one[kind].samples for one in found]).mean(0)  # type: ignore[no-any-return]


def beaten(settings: Sequence[str], seeds: int, kept: Mapping[tuple[str, int], Kinds]) -> list[dict[str, Any]]:
    """How many points erq is above every other method of the same bits and pictures, mean over the seeds, and its interval;
    on how many seeds it is above."""
    rows = []
    for setting in settings:
        bits, _, *calib = setting.split()
        ours = " ".join((bits, "erq", *calib))
        if setting == ours or ours not in settings:
            continue
        for kind in KINDS:
            one, other = ([kept[name, seed] for seed in range(seeds)] for name in (ours, setting))
            low, high = interval(mean_samples(one, kind), mean_samples(other, kind))
            gains = [a[kind].ap - b[kind].ap for a, b in zip(one, other, strict=True)]
            better = sum(gain > 0 for gain in gains)
            row = {"setting": setting, "kind": kind, "mean": statistics.fmean(gains), "low": low, "high": high}
            rows.append(row | {"better": better})
    return rows
