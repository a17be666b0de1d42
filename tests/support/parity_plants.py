"""Faults planted into an exported graph, one after another, and the block, site and kind that must be named for each.

ULP is a unit in the last place. The layers named are those of `tiny_vit` and `tiny_swin`, whose blocks are "blocks.I" and
"layers.I.blocks.J".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from parity_fixtures import constant

Damage = Callable[[ir.Graph], None]


@dataclass(frozen=True, kw_only=True)
class Plant:
    """`site` within the block, of `kind`;  coarse: the block's output shows it beside what the block itself amplifies;  fine: it
    may not show in a single number of the piece's output."""

    damage: Damage
    site: str
    kind: str
    coarse: bool = False
    fine: bool = False


def plants(block: str, *, zero_points: bool, integer_attention: bool) -> dict[str, Plant]:
    """All faults, in one block. zero_points: has the graph others than 0;  integer_attention: are q and k quantized."""
    qkv, proj, fc1, fc2 = (f"{block}.{part}" for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"))
    norm, behind = f"{block}.norm2", f"{block}.attn.softmax" if integer_attention else proj
    other = fc2 if zero_points else ""
    return {
        "input scale, 1 ULP": Plant(damage=ulp(f"{fc1}.act_scale_q"), site=fc1, kind="input scale", fine=True),
        "dequantizer scale, 1 ULP": Plant(
            damage=ulp(f"{fc2}.act_scale_dq"), site=fc2, kind="dequantizer scale", fine=True
        ),
        "weight scale, 1 ULP": Plant(damage=ulp(f"{qkv}.weight_scale"), site=qkv, kind="weight scale", fine=True),
        "input scale, 1 %": Plant(damage=times(f"{fc1}.act_scale_q", 1.01), site=fc1, kind="input scale"),
        "dequantizer scale, 1 %": Plant(damage=times(f"{fc1}.act_scale_dq", 1.01), site=fc1, kind="dequantizer scale"),
        "weight scale, 1 %": Plant(damage=times(f"{fc2}.weight_scale", 1.01), site=fc2, kind="weight scale"),
        "weight scale, negative": Plant(
            damage=times(f"{fc2}.weight_scale", -1), site=fc2, kind="weight scale", coarse=True
        ),
        "wrong weight row": Plant(damage=row(f"{proj}.weight_q"), site=proj, kind="weight integers"),
        "swapped zero point": Plant(
            damage=swapped(f"{fc1}.act_zero_point", f"{other}.act_zero_point")
            if other
            else plus(f"{fc1}.act_zero_point", 3),
            site=fc1,
            kind="zero point",
        ),
        "missing Clip": Plant(damage=without(f"{fc2}/Clip"), site=fc2, kind="clip", fine=True),
        "q and k exchanged": Plant(
            damage=q_and_k_exchanged(f"{block}.attn", integer=integer_attention), site=behind, kind="float operators"
        ),
        "LayerNorm's epsilon": Plant(damage=epsilon(norm), site=norm, kind="epsilon"),
        "LayerNorm's weight": Plant(damage=times(f"{norm}.weight", 1.01), site=norm, kind="norm weight"),
    }


def ulp(name: str) -> Damage:
    """The first number one unit in the last place larger, in its own type."""

    def change(array: Any) -> Any:
        flat = array.reshape(-1)
        flat[0] = np.nextafter(flat[0], flat.dtype.type(np.inf))
        return array

    return lambda graph: constant(graph, name, change)


def times(name: str, factor: float) -> Damage:
    return lambda graph: constant(graph, name, lambda array: array * factor)


def plus(name: str, step: int) -> Damage:
    return lambda graph: constant(graph, name, lambda array: array + step)


def row(name: str) -> Damage:
    """The last output channel gets the integers of the first; a weight lies there as (k, n)."""

    def change(q: Any) -> Any:
        q[:, -1] = q[:, 0]
        return q

    return lambda graph: constant(graph, name, change)


def swapped(one: str, other: str) -> Damage:
    def damage(graph: ir.Graph) -> None:
        first, second = (graph.initializers[name].const_value.numpy().copy() for name in (one, other))  # type: ignore[union-attr]
        if np.array_equal(first, second):
            raise ValueError(f"{one} and {other} are equal: nothing would be swapped")
        constant(graph, one, lambda _: second)
        constant(graph, other, lambda _: first)

    return damage


def without(name: str) -> Damage:
    """The node is gone; whoever read it reads its input."""

    def damage(graph: ir.Graph) -> None:
        node = _node(graph, name)
        before, behind = node.inputs[0], node.outputs[0]
        ir.convenience.replace_all_uses_with(behind, before)
        graph.remove(node, safe=True)
        quantizer = None if before is None else before.producer()
        if before is not None and quantizer is not None and quantizer.op_type == "QuantizeLinear":
            before.name = behind.name  # the codes that the manifest knows

    return damage


def q_and_k_exchanged(attn: str, *, integer: bool = False) -> Damage:
    """Whoever reads q reads k, and the other way round; integer: behind their quantizers."""

    def damage(graph: ir.Graph) -> None:
        if integer:
            q, k = (_node(graph, f"{attn}.{role}/Dequantize").outputs[0] for role in "qk")
        else:
            product = _node(graph, f"{attn}.qkv/Add").outputs[0]
            (split,) = [use.node for use in product.uses() if use.node.op_type == "Split"]
            q, k = split.outputs[0], split.outputs[1]
        of_q, of_k = list(q.uses()), list(k.uses())
        for use in of_q:
            use.node.replace_input_with(use.idx, k)
        for use in of_k:
            use.node.replace_input_with(use.idx, q)

    return damage


def epsilon(norm: str) -> Damage:
    """That of another framework's default: ten times as large or as small."""

    def damage(graph: ir.Graph) -> None:
        node = _node(graph, f"{norm}/LayerNormalization")
        given = node.attributes.get("epsilon")
        old = 1e-5 if given is None else given.as_float()
        node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-5 if old < 5e-6 else 1e-6)

    return damage


def _node(graph: ir.Graph, name: str) -> ir.Node:
    (node,) = [node for node in graph if node.name == name]
    return node
