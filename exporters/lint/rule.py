"""What a rule is and what it reports."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import onnx_ir as ir

from erq_export.contract.records import Record

from .view import View, named

Severity: TypeAlias = Literal["error", "warning"]
NVIDIA = ("tensorrt", "tensorrt-rtx")
ANY = ("onnx", *NVIDIA)


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One place where a rule is broken: the node, why it matters, what to do."""

    node: ir.Node | None  # None: the graph as a whole
    reason: str
    fix: str


class Finding(Record, frozen=True, kw_only=True):
    """A hit as it is reported."""

    rule: str
    severity: Severity
    node: str
    reason: str
    fix: str


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One thing that can be wrong, and the targets on which it is.

    errors: the target refuses the graph, or computes something else than it says;  warnings: it runs, but not in
    integers, not fused, or larger than needed.  source: where the claim comes from.
    """

    id: str
    says: str
    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    source: str
    find: Callable[[View], Iterable[Hit]] = field(repr=False)

    def severity(self, target: str) -> Severity | None:
        """None where the rule does not concern the target."""
        return "error" if target in self.errors else "warning" if target in self.warnings else None

    def findings(self, view: View, target: str) -> list[Finding]:
        severity = self.severity(target)
        if severity is None:
            return []
        return [
            Finding(rule=self.id, severity=severity, node=named(hit.node), reason=hit.reason, fix=hit.fix)
            for hit in self.find(view)
        ]


def rule(
    says: str, *, errors: Collection[str] = (), warnings: Collection[str] = ()
) -> Callable[[Callable[[View], Iterable[Hit]]], Rule]:
    """Make a Rule of a function: its name is the id, its docstring the source."""

    def made(find: Callable[[View], Iterable[Hit]]) -> Rule:
        return Rule(
            id=find.__name__.replace("_", "-"),
            says=says,
            errors=tuple(errors),
            warnings=tuple(warnings),
            source=" ".join((find.__doc__ or "").split()),
            find=find,
        )

    return made
