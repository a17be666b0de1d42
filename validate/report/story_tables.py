"""Where a model loses, in tables: error by depth, and what each layer costs and would give back."""

import math

from erq_export.contract.story import Story, sqnr_db

from .tables import Table


def depth(story: Story) -> Table:
    """One line a block: how far the signal stands above what quantization adds, in dB; more is better."""
    head = ("block", "entering dB", "weights alone dB", "inputs alone dB", "both dB", "both, relative squared error")
    return head, [
        [
            block.path,
            *(in_db(error) for error in (block.entering, block.weights, block.activations, block.both)),
            f"{block.both:.2e}",
        ]
        for block in story.depth
    ]


def sensitivity(story: Story) -> Table:
    """One line a layer, most costly first: the outputs' error where it alone is quantized, and with it raised to 8 bits."""
    head = ("layer", "designed", "weights", "error alone", "error with it at w8a8", "gives back")
    return head, [
        [
            cost.path,
            f"w{cost.w_bits}a{cost.a_bits}",
            f"{cost.n_weights:,}",
            f"{cost.alone:.2e}",
            f"{cost.raised:.2e}",
            "" if not story.error else f"{100 * (story.error - cost.raised) / story.error:.1f} %",
        ]
        for cost in story.sensitivity
    ]


def in_db(error: float) -> str:
    """SQNR, or that there is no error."""
    db = sqnr_db(error)
    return f"{db:.1f}" if math.isfinite(db) else "exact"
