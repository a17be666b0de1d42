"""Is a graph one at all: every name made once and before or after its use somewhere, and no value made of itself?"""

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet

import onnx

from .problem import Problem, called
from .shown import shown

AttributeKind = onnx.AttributeProto


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of If, Loop, Scan and the like."""
    for attribute in node.attribute:
        if attribute.type == AttributeKind.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeKind.GRAPHS:
            yield from attribute.graphs


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Those of subgraphs too. Protobuf itself refuses messages nested more than 100 deep, so this ends."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from all_nodes(graph.node)


def graph_problems(graph: onnx.GraphProto, outer: AbstractSet[str] = frozenset()) -> Iterator[Problem]:
    """Names of one graph and of its subgraphs. `outer` are those that a subgraph sees from outside."""
    where = f"graph {shown(graph.name)!r}"
    for kind, given in (("input", [v.name for v in graph.input]), ("initializer", initializers(graph))):
        for name, twice in _seen(given):
            if not name:
                yield Problem(f"{where}: an {kind} has no name")
            elif twice:
                yield Problem(f"{where}: two {kind}s are named {shown(name)!r}")
    named = {v.name for v in graph.input} | set(initializers(graph))
    yield from node_problems(graph.node, named, [v.name for v in graph.output], outer, where)


def initializers(graph: onnx.GraphProto) -> list[str]:
    """Names of the constants, dense and sparse."""
    return [t.name for t in graph.initializer] + [t.values.name for t in graph.sparse_initializer]


def _seen(names: Iterable[str]) -> Iterator[tuple[str, bool]]:
    before: set[str] = set()
    for name in names:
        yield name, name in before
        before.add(name)


def node_problems(
    nodes: Sequence[onnx.NodeProto],
    named: AbstractSet[str],
    outputs: Sequence[str],
    outer: AbstractSet[str],
    where: str,
) -> Iterator[Problem]:
    """Values made twice, read but never made, or made of themselves."""
    makers: dict[str, int] = {}
    for i, node in enumerate(nodes):
        for name in node.output:
            if name in makers or name in named:
                other = called(nodes[makers[name]]) if name in makers else f"an input or initializer of {where}"
                yield Problem(f"{called(node)} makes {shown(name)!r}, which {other} is or makes already")
            if name:
                makers[name] = i
    visible = outer | named | makers.keys()
    unsorted = False
    for i, node in enumerate(nodes):
        for name in node.input:
            if name and name not in visible:
                yield Problem(f"{called(node)} reads {shown(name)!r}: no node, input or initializer makes it")
            unsorted |= makers.get(name, -1) >= i
        for graph in subgraphs(node):
            yield from graph_problems(graph, visible)
            unsorted |= any(makers.get(name, -1) >= i for name in free_names(graph))
    for name in outputs:
        if name not in visible:
            yield Problem(f"{where}: no node, input or initializer makes its output {shown(name)!r}")
    if unsorted and (cycle := _cycle(nodes, makers)):
        path = " -> ".join(shown(name) for name in cycle[:8])
        yield Problem(f"{where} has a cycle: {path}{' -> …' if len(cycle) > 8 else ''} is made of itself")


def free_names(graph: onnx.GraphProto) -> set[str]:
    """What a subgraph reads from outside."""
    read = {name for node in graph.node for name in node.input if name} | {v.name for v in graph.output}
    for node in graph.node:
        for inner in subgraphs(node):
            read |= free_names(inner)
    made = {name for node in graph.node for name in node.output}
    return read - made - {v.name for v in graph.input} - set(initializers(graph))


def _cycle(nodes: Sequence[onnx.NodeProto], makers: dict[str, int]) -> list[str]:
    """Values along one cycle, the first again at its end; empty where there is none. Kahn's algorithm, O(nodes + edges)."""
    reads = [{n for n in node.input if n in makers} for node in nodes]
    for node, names in zip(nodes, reads, strict=True):
        for graph in subgraphs(node):
            names |= {n for n in free_names(graph) if n in makers}
    readers: dict[int, list[int]] = {}
    for i, names in enumerate(reads):
        for name in names:
            readers.setdefault(makers[name], []).append(i)
    missing = [len(names) for names in reads]
    ready = [i for i, n in enumerate(missing) if not n]
    left = set(range(len(nodes)))
    while ready:
        i = ready.pop()
        left.discard(i)
        for j in readers.get(i, ()):
            missing[j] -= 1
            if not missing[j]:
                ready.append(j)
    if not left:
        return []
    walk: list[str] = []  # every node that is left reads one that is left: going back must come round
    at, seen = min(left), {}
    while at not in seen:
        seen[at] = len(walk)
        name = next(n for n in sorted(reads[at]) if makers[n] in left)
        walk.append(name)
        at = makers[name]
    loop = walk[seen[at] :]
    return [*reversed(loop), loop[-1]]
