"""What is wrong with a file before any rule can look at it."""

from typing import NamedTuple

import onnx

from .shown import shown

EXPORT_AGAIN = "export the model again"


class Problem(NamedTuple):
    """One malformed thing: where and what it is, and what to do about it."""

    says: str
    fix: str = EXPORT_AGAIN


def called(node: onnx.NodeProto) -> str:
    """node 'fc/Q' (QuantizeLinear); by its first output where it has no name."""
    name = f" {shown(node.name)!r}" if node.name else f" that makes {shown(node.output[0])!r}" if node.output else ""
    return f"node{name} ({shown(node.op_type)})"


def counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
