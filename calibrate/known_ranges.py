"""Input grids found by an earlier calibration, as they were before folding: taken over where nothing that decides them differs.

Ranges are searched on float activations (or behind activation quantizers, weights float), never behind quantized weights.
So weight bits, and the way in which weights are solved, do not decide them: w4a4, w3a4, w2a4 and w4a4,head=w8a4 have the same,
and so have erq, gptq and repq, which fold the same LayerNorms.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from msgspec import structs
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, device

from erq_export.contract.formats.affine import Grid
from erq_export.contract.records import plain_of
from erq_export.contract.sites import Role

from .setting import Setting

TENSORS = ("scale", "qmin", "qmax")
ROTATED = "rotated"


@dataclass
class KnownRanges:
    """Site path → grid as searched: tensors (k, 1) where the LayerNorm is folded, () elsewhere. Filled as a loop goes on.

    rotated: what had another basis when they were searched; None where nothing was searched yet.
    """

    grids: dict[str, Grid] = field(default_factory=dict)
    rotated: tuple[str, ...] | None = None

    def begin(self, rotated: tuple[str, ...]) -> None:
        """Forget grids of other bases."""
        if self.rotated != rotated:
            self.grids.clear()
        self.rotated = rotated

    def save(self, path: Path) -> None:
        """As safetensors."""
        tensors = {f"{site}.{name}": getattr(grid, name) for site, grid in self.grids.items() for name in TENSORS}
        bases = {ROTATED: json.dumps(self.rotated)}
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, path, metadata=bases)

    @classmethod
    def load(cls, path: Path, on: device) -> "KnownRanges":
        """Inverse of `save`, on a device."""
        tensors: dict[str, Tensor] = load_file(path, device=str(on))
        with safe_open(path, "pt") as file:
            rotated = tuple(json.loads(file.metadata()[ROTATED]))
        sites = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
        grids = {site: Grid(**{name: tensors[f"{site}.{name}"] for name in TENSORS}) for site in sites}
        return cls(grids=grids, rotated=rotated)


def deciding(setting: Setting) -> dict[str, Any]:
    """Everything of a setting that decides input grids: activation bits, rules, what is folded and how, what is searched."""
    options, bits = setting.options, setting.bits
    own = [[pattern, own.a] for pattern, own in bits.overrides]
    return {
        "a": bits.a if all(a == bits.a for _, a in own) else [bits.a, *own],
        "rules": plain_of(structs.replace(setting.rules, int4_weights=False)),
        "input_ranges": options.input_ranges,
        "range_error": options.range_error,
        "input_percentiles": options.input_percentiles,
        "patch_input": options.patch_input,
        "folds": [role for role in get_args(Role) if setting.folds_role(role, bits.a)],
        "mean_zero": options.mean_zero,
        "attention": setting.attention if options.input_ranges == "quantized" else "",
        "attention_bits": options.attention_bits if options.input_ranges == "quantized" else 0,
    }
