"""Where blocks begin and end in an exported file.

Letters:  v a value that depends on the image;  v is narrow where all that is computed later depends on the image through v alone

A block hands one tensor on, so its end is narrow, and so is little else: around a layer inside a residual branch runs the
stream. Between the last layer of a block and the first of the next, the first narrow value of the output's shape is the
block's end; behind it may come a LayerNorm (of the head). Behind the first block, the patch embedding, it is the last one: class
token, positions and LayerNorm are added there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from erq_export.contract.manifest import Quantized


@dataclass(frozen=True)
class Extent:
    """What is known of a block beforehand: the paths of its layers and operands, the shape (B, …) of its output."""

    paths: tuple[str, ...]
    shape: tuple[int, ...]


def ends(graph: ir.Graph, blocks: Sequence[Extent], claimed: Mapping[str, Quantized]) -> list[str | None]:
    """The name of each block's output; None where the file has no such value. The last block's is the graph's."""
    nodes = list(graph)
    position = {str(value.name): i for i, node in enumerate(nodes) for value in node.outputs}
    narrow = _narrow(graph, nodes)
    found: list[str | None] = []
    behind = -1
    for i, block in enumerate(blocks[:-1]):
        behind = max([behind, *(position.get(claimed[p].output, -1) for p in block.paths if p in claimed)])
        later = [p for other in blocks[i + 1 :] for p in other.paths if p in claimed]
        before = min((position.get(claimed[p].codes, len(nodes)) for p in later), default=len(nodes))
        names = [name for at, name in narrow if behind <= at < before and _has_shape(nodes[at], name, block.shape)]
        found.append(None if not names else names[-1] if i == 0 else names[0])
    return [*found, str(graph.outputs[0].name)]


def _narrow(graph: ir.Graph, nodes: Sequence[ir.Node]) -> list[tuple[int, str]]:
    """(position, name) of the narrow values, in the order of the file."""
    last_use: dict[str, int] = {}
    dynamic = {str(value.name) for value in graph.inputs}
    for i, node in enumerate(nodes):
        read = [str(value.name) for value in node.inputs if value is not None]
        if any(name in dynamic for name in read):
            dynamic |= {str(value.name) for value in node.outputs}
        last_use |= dict.fromkeys(read, i)
    last_use |= {str(value.name): len(nodes) for value in graph.outputs}
    found = []
    live = {str(value.name) for value in graph.inputs}
    for i, node in enumerate(nodes):
        live |= {str(value.name) for value in node.outputs} & dynamic
        live = {name for name in live if last_use.get(name, -1) > i}
        if len(live) == 1:
            found.append((i, next(iter(live))))
    return found


def _has_shape(node: ir.Node, name: str, shape: tuple[int, ...]) -> bool:
    """Is this output of the node a float tensor of this shape, the first axis and unknown ones aside?"""
    value = next((value for value in node.outputs if value.name == name), None)
    if value is None or value.shape is None or len(value.shape) != len(shape):
        return False
    if value.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return False
    return all(
        not isinstance(known, int) or known == size for known, size in list(zip(value.shape, shape, strict=True))[1:]
    )
