"""What one calibration was asked for, its method and options in their own types."""

from dataclasses import dataclass, replace
from typing import Any

from msgspec import structs

from erq_export.contract.registry import resolve_attribute
from erq_export.contract.sites import Role, Site
from erq_export.contract.spec import AttentionPrecision, Bits, Quantization
from erq_export.contract.targets import GridRules

from .methods.erq import ErqOptions
from .methods.method import Method, method_named, options_for
from .methods.options import Options
from .solve.problem import Problem, Solution

FLOAT_BITS = 32  # of an input that is not quantized
PATCH_BITS = 8  # of the image at the patch embedding, whatever the other activations have (RepQ-ViT)


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

    def float_input(self, site: Site) -> bool:
        """Does the site's input stay as it is? The image of the extended paper does."""
        return site.role == "patch" and self.options.patch_input == "float"

    def act_bits(self, site: Site) -> int:
        """Designed bits of a site's input."""
        if site.role == "patch":
            return FLOAT_BITS if self.float_input(site) else PATCH_BITS
        return self.bits.at(site.path).a

    def weight_bits(self, site: Site) -> int:
        """Designed bits of a site's weights."""
        return self.bits.at(site.path).w

    def folds_role(self, role: Role, a: int) -> bool:
        """Is what makes the input of such layers reparameterised, at so many bits? Values are where the softmax is float, for
        its weights must sum to 1, and below 8 bits: there one grid for all channels has steps fine enough, and ranges of
        single channels are left by other images (docs/beyond-the-paper.md)."""
        return self.options.folds(role) and (role != "proj" or (self.attention == "fp16" and a < 8))

    def folds(self, site: Site) -> bool:
        """Does the site have something that its input's grid can be folded into, and is that wanted? What it is folded into
        has no other reader, so a layer's own bits decide, whatever others have."""
        return (site.norm is not None or site.values is not None) and self.folds_role(site.role, self.act_bits(site))

    def at(self, solution: Solution) -> "Setting":
        """The setting with the ridge that was chosen."""
        if solution.ridge is None or not isinstance(self.options, ErqOptions):
            return self
        return replace(self, options=structs.replace(self.options, ridge=solution.ridge))

    def solve(self, problem: Problem) -> Solution:
        """One layer's integers, by the method's solver."""
        solver: Any = resolve_attribute(self.method.solver)
        solution: Solution = solver(problem, self.options)
        return solution
