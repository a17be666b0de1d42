"""Whose decisions: where two quantized models decide unlike the float one, and how narrowly that one had decided."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from erq_export.data.held_out import Images

from ..runners import Runner

QUANTILES = (0.01, 0.5, 0.99)


@dataclass(frozen=True, kw_only=True)
class Margins:
    """Every held-out image as the float model sees it: label, decision, margin = largest logit − second, and its rank,
    1 for the smallest margin."""

    images: Mapping[str, Mapping[str, Any]]

    def about(self, rows: Sequence[Mapping[str, Any]], pair: Sequence[str]) -> dict[str, Any]:
        """Of the float model, and of the pair of methods at all bits that have both; a row: bits, method, decisions by seed."""
        by = {(row["bits"], row["method"]): row["decisions"] for row in rows}
        ready = [
            bits for bits in dict.fromkeys(row["bits"] for row in rows) if all((bits, method) in by for method in pair)
        ]
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


def margins(runner: Runner, images: Images, names: Sequence[str]) -> Margins:
    """Of labelled images by name, as `runner`, the float model, sees them. ValueError where they have no labels."""
    if images.labels is None:
        raise ValueError("the images have no labels")
    two = torch.cat([runner.logits(pixels) for pixels in images.pixels()]).topk(2, 1)
    gap = two.values[:, 0] - two.values[:, 1]
    columns = (images.labels, two.indices[:, 0], gap, gap.argsort(stable=True).argsort() + 1)
    rows = zip(names, *(column.tolist() for column in columns), strict=True)
    keys = ("label", "decision", "margin", "rank")
    return Margins(images={name: dict(zip(keys, row, strict=True)) for name, *row in rows})
