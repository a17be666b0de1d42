"""Model-local functions: can they be put in the place of their calls, and how many nodes come out?"""

import graphlib
from collections.abc import Iterator

import onnx

from .problem import Problem
from .shown import shown
from .structure import all_nodes, node_problems

MOST_NODES = 200_000  # of the whole graph; the largest exports in use have some ten thousand
DEEPEST = 64  # calls within calls; a name grows with each
Called = tuple[str, str, str]


def key(of: onnx.NodeProto | onnx.FunctionProto) -> Called:
    """(domain, name, overload)."""
    name = of.op_type if isinstance(of, onnx.NodeProto) else of.name
    return of.domain, name, of.overload


def function_problems(model: onnx.ModelProto) -> Iterator[Problem]:
    """Functions given twice, damaged inside, recursive, or that multiply beyond MOST_NODES."""
    if not model.functions:
        return
    bodies: dict[Called, onnx.FunctionProto] = {}
    for function in model.functions:
        where = f"function {shown(function.name)!r}"
        if key(function) in bodies:
            yield Problem(f"{where} is defined twice")
        bodies[key(function)] = function
        if len({*function.input}) < len(function.input):
            yield Problem(f"{where}: two inputs have one name")
        yield from node_problems(function.node, {*function.input}, function.output, frozenset(), where)
    calls = {
        name: {key(node) for node in all_nodes(function.node)} & bodies.keys() for name, function in bodies.items()
    }
    try:
        order = list(graphlib.TopologicalSorter(calls).static_order())  # what is called comes first
    except graphlib.CycleError as e:
        yield Problem(f"function {' calls '.join(repr(shown(name[1])) for name in e.args[1])}: it never ends")
        return
    sizes: dict[Called, int] = {}
    depths: dict[Called, int] = {}
    for name in order:
        sizes[name] = sum(sizes.get(key(node), 1) for node in all_nodes(bodies[name].node))
        depths[name] = 1 + max((depths[inner] for inner in calls[name]), default=0)
        if depths[name] > DEEPEST:
            yield Problem(f"function {shown(name[1])!r} calls functions within functions, more than {DEEPEST} deep")
    size = sum(sizes.get(key(node), 1) for node in all_nodes(model.graph.node))
    if size > MOST_NODES:
        yield Problem(f"it has {size:.15g} nodes, functions written out; at most {MOST_NODES} are checked")
