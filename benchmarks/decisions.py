"""Whose decisions: where two methods decide unlike the float model, and how narrowly the float model had decided."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from erq_export.flow.job import Job
from erq_export.flow.run import begin
from erq_export.flow.store.store import Store
from erq_export.flow.sweep import Calibrated
from erq_export.flow.ui import SILENT
from erq_export.validate.runners import TorchRunner

PAIR = ("erq", "gptq")  # whose decisions are set beside each other, image by image
PAIR_BITS = ("w2a4", "w3a4", "w4a4")
QUANTILES = (0.01, 0.5, 0.99)


def changes(c: Calibrated) -> dict[str, int]:
    """image → class, of the held-out images that the reference puts elsewhere than the float model."""
    got = c.work.reference_decisions(c.artifact, c.held_out).top[:, 0]
    moved = (got != c.work.float_decisions(c.held_out).top[:, 0]).nonzero()[:, 0].tolist()
    val = c.work.val
    return {} if val is None else {val.name(i): int(got[i]) for i in moved}


@dataclass(frozen=True, kw_only=True)
class Margins:
    """Every held-out image as the float model sees it: label, decision, margin = largest logit − second, and its rank,
    1 for the smallest margin."""

    images: Mapping[str, Mapping[str, Any]]

    def about(self, rows: Sequence[Mapping[str, Any]], pair: Sequence[str]) -> dict[str, Any]:
        """What the page says of the float model, and of the pair wherever both of it are there."""
        by = {(row["bits"], row["method"]): row["decisions"] for row in rows}
        ready = [bits for bits in PAIR_BITS if all((bits, method) in by for method in pair)]
        pairs = {bits: self.paired({method: by[bits, method] for method in pair}) for bits in ready}
        spread = torch.tensor([m["margin"] for m in self.images.values()], dtype=torch.float64)
        right = sum(m["label"] == m["decision"] for m in self.images.values())
        return {
            "held_out": len(self.images),
            "float_top1": 100 * right / len(self.images),
            "margin_quantiles": spread.quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist(),
            "paired": pairs,
            "images": {
                name: dict(self.images[name]) for name in sorted({n for p in pairs.values() for n in p["changed"]})
            },
        }

    def paired(self, decisions: Mapping[str, Sequence[Mapping[str, int]]]) -> dict[str, Any]:
        """Two methods at one precision, seed by seed on the same images.

        only_wrong: (image, seed) pairs that one alone gets wrong, whose difference is that of top-1;  changed: per image
        on which a decision ever differs from the float model's, on how many seeds, by method.
        """

        def wrong(found: Mapping[str, int]) -> set[str]:
            return {name for name, m in self.images.items() if found.get(name, m["decision"]) != m["label"]}

        one, other = decisions
        seeds = [(wrong(a), wrong(b)) for a, b in zip(decisions[one], decisions[other], strict=True)]
        alone = {one: [a - b for a, b in seeds], other: [b - a for a, b in seeds]}
        moved = {name for found in decisions.values() for seed in found for name in seed}
        return {
            "only_wrong": {method: sum(map(len, sets)) for method, sets in alone.items()},
            "images_only_wrong": {method: sorted(set().union(*sets)) for method, sets in alone.items()},
            "changed": {
                name: {method: sum(name in seed for seed in found) for method, found in decisions.items()}
                for name in sorted(moved, key=lambda name: self.images[name]["rank"])
            },
        }


def margins(job: Job, store: Store) -> Margins:
    """Of the job's held-out images."""
    work = begin(job, SILENT, store)
    if work.held_out is None or work.val is None or work.held_out.labels is None:
        raise ValueError(f"the job of {job.model.name} has no labelled images")
    runner = TorchRunner(work.model.model, work.stages.device)
    two = torch.cat([runner.logits(pixels) for pixels in work.held_out.pixels()]).topk(2, 1)
    gap = two.values[:, 0] - two.values[:, 1]
    columns = (work.held_out.labels, two.indices[:, 0], gap, gap.argsort(stable=True).argsort() + 1)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    keys = ("label", "decision", "margin", "rank")
    return Margins(images={work.val.name(i): dict(zip(keys, row, strict=True)) for i, row in enumerate(rows)})
