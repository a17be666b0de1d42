"""One block, teacher-forced: the reference's input to a block goes through that block alone, in the reference and in the file.

Letters:  x a block's input, as the reference computes it;  y its output

Nothing that an earlier block got wrong, or amplified, reaches a later one, and the noise floor is that of one block: limits
tell a wrong block from a right one where the whole model's say nothing. Memory: one block's piece of the file, its input and
output for the given images.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce

import onnx_ir as ir
import torch
from torch import Tensor, nn

from erq_export.backends.onnxruntime import run_one, session
from erq_export.contract.block_parity import BlockParity
from erq_export.contract.errors import SpecError
from erq_export.contract.manifest import Quantized
from erq_export.contract.quantized import QuantLinear, QuantOperand
from erq_export.contract.sites import Stage
from erq_export.models.family import family_of

from ..metrics.distance import ROUNDING, relative_l2
from .boundaries import Extent, ends
from .floor import FLOAT_E, HALF_E, floor_of
from .layers import as_fed
from .pieces import cut, is_half, serialized

FACTOR = 3.0  # of the largest of the draws: honest graphs used a third of that at most (docs/backends.md, "Parity")
DRAWS = 3  # of a block; together they cost as much as three passes of the reference
HALF_ROUNDING = 5e-3  # float16, as between the layers
LARGEST_E = 0.1  # a head of few rows has few codes that could move


@dataclass(frozen=True)
class Block:
    """Consecutive stages, mostly one: their names, and the values of the file before and behind them."""

    stages: tuple[Stage, ...]
    sites: tuple[str, ...]
    first: str
    last: str

    @property
    def path(self) -> str:
        names = [stage.name for stage in self.stages]
        return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"

    def forward(self, x: Tensor) -> Tensor:
        return reduce(lambda x, stage: stage.forward(x), self.stages, x)


def stages_of(reference: nn.Module) -> tuple[Stage, ...]:
    """The stages that its family knows; none for a model of no known family."""
    try:
        return family_of(reference).stages(reference)
    except SpecError:
        return ()


@torch.no_grad()
def blocks_of(
    reference: nn.Module, graph: ir.Graph, claimed: Mapping[str, Quantized], pixels: Tensor
) -> tuple[Block, ...]:
    """The blocks as the file shows them; stages between which it has no single value are one block."""
    stages = stages_of(reference)
    if not stages:
        return ()
    extents, sites = [], []
    x = pixels[:1]
    for stage in stages:
        with _passed(reference) as seen:
            x = stage.forward(x)
        sites.append(tuple(seen))
        extents.append(Extent(paths=tuple(path for path in seen if path in claimed), shape=tuple(x.shape)))
    blocks: list[Block] = []
    first, begun = str(graph.inputs[0].name), 0
    for i, last in enumerate(ends(graph, extents, claimed)):
        if last is not None:
            together = slice(begun, i + 1)
            blocks.append(Block(stages[together], tuple(p for s in sites[together] for p in s), first, last))
            first, begun = last, i + 1
    return tuple(blocks)


@torch.no_grad()
def check_block(
    reference: nn.Module,
    graph: ir.Graph,
    block: Block,
    x: Tensor,
    *,
    draws: int = DRAWS,
    factor: float = FACTOR,
    seed: int = 0,
) -> BlockParity:
    """Level 3 of docs/backends.md, "Parity" for one block, in the file's types; x is rounded to them on both sides."""
    piece = cut(graph, [block.first], [block.last], of=block.path)
    half = is_half(piece.graph.outputs[0]) or is_half(piece.graph.inputs[0])
    fed = as_fed(x, piece)
    want = block.forward(fed.float())
    found = run_one(session(serialized(piece)), fed).float()
    start = HALF_E if half else FLOAT_E
    floor = floor_of(
        reference,
        lambda *_: block.forward(fed.float()),
        want,
        start=start,
        draws=draws,
        seed=seed,
        largest=LARGEST_E,
    )
    return BlockParity(
        path=block.path,
        sites=block.sites,
        relative_l2=relative_l2(found, want),
        floor=floor,
        factor=factor,
        limit=max(HALF_ROUNDING if half else ROUNDING, factor * max(floor.draws)),
    )


@torch.no_grad()
def inputs_of(blocks: Sequence[Block], pixels: Tensor) -> Iterator[tuple[Block, Tensor]]:
    """Every block with the input that the reference gives it, one at a time."""
    x = pixels
    for block in blocks:
        yield block, x
        x = block.forward(x)


@contextmanager
def _passed(reference: nn.Module) -> Iterator[list[str]]:
    """The paths of the LayerNorms, quantized layers and operands that run meanwhile, in order."""
    seen: list[str] = []

    def hook(path: str) -> object:
        return lambda *_: seen.append(path)

    handles = [
        module.register_forward_pre_hook(hook(path))  # type: ignore[arg-type]
        for path, module in reference.named_modules()
        if isinstance(module, nn.LayerNorm | QuantLinear | QuantOperand)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
