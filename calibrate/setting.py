"""What one calibration was asked for, its method and options in their own types."""

from dataclasses import dataclass
from typing import Any

from erq_export.contract.registry import resolve_attribute
from erq_export.contract.spec import AttentionPrecision, Bits, Quantization
from erq_export.contract.targets import GridRules

from .methods.method import Method, method_named, options_for
from .methods.options import Options
from .solve.problem import Problem, Solution


@dataclass(frozen=True, kw_only=True)
class Setting:
    """`Quantization`, the slice as it is written to files, read."""

    bits: Bits
    method: Method
    options: Options
    attention: AttentionPrecision
    rules: GridRules

    @classmethod
    def of(cls, asked: Quantization) -> "Setting":
        """SpecError where the options are not the method's."""
        return cls(
            bits=asked.bits,
            method=method_named(asked.method),
            options=options_for(asked),
            attention=asked.attention,
            rules=asked.rules,
        )

    @property
    def simulated(self) -> bool:
        """Is this for `reference` alone, so that no container limits the grids?"""
        return not self.rules.holds_zero

    def solve(self, problem: Problem) -> Solution:
        """One layer's integers, by the method's solver."""
        solver: Any = resolve_attribute(self.method.solver)
        solution: Solution = solver(problem, self.options)
        return solution
