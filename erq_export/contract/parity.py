"""What the comparison of an exported file with the calibrated model found, level by level, and what of it is a problem.

Equality is claimed where it holds (docs/backends.md, "Parity"). A `limit` stands beside the figure that it judges.
"""

from typing import ClassVar

from erq_export.contract.block_parity import BlockParity
from erq_export.contract.constant_parity import ConstantParity, OriginParity
from erq_export.contract.decision_parity import DecisionParity
from erq_export.contract.floor import LARGEST as LARGEST
from erq_export.contract.floor import TELLING, off
from erq_export.contract.floor import NoiseFloor as NoiseFloor
from erq_export.contract.floor import in_words as in_words
from erq_export.contract.followed import Followed
from erq_export.contract.manifest import Count
from erq_export.contract.records import FileRecord, Record

# ONNX Runtime's operators that multiply integers.
INTEGER_GEMMS = frozenset({"MatMulIntegerToFloat", "QLinearMatMul", "MatMulInteger", "QGemm", "ConvInteger"})


def is_integer(products: str) -> bool:
    """Are both products of an attention, as operators joined by "+", integer ones?"""
    return all(op in INTEGER_GEMMS for op in products.split("+"))


class WeightParity(Record, frozen=True, kw_only=True):
    """`different`: how many integers of a layer differ, all where type or shape do; `float_copies`: tensor → layer."""

    n_layers: Count
    n_integers: Count
    different: dict[str, Count]
    missing: tuple[str, ...]  # layers of the bundle that the file does not have
    float_copies: dict[str, str]

    def problems(self) -> list[str]:
        return [
            *(f"{path}: the bundle has this layer, the file has no integers for it" for path in self.missing),
            *(f"{path}: {n} weight integers in the file are not the bundle's" for path, n in self.different.items()),
            *(f"{path}: the file holds its weight in float too, as {name}" for name, path in self.float_copies.items()),
        ]


class CodeParity(Record, frozen=True, kw_only=True):
    """Quantizer, same input: n codes compared; `mismatches` differ, by at most `max_lsb`."""

    n: Count
    mismatches: Count
    max_lsb: Count

    @property
    def share(self) -> float:
        return self.mismatches / max(self.n, 1)

    def problems(self, path: str) -> list[str]:
        if not self.mismatches:
            return []
        return [
            f"{path}: {self.mismatches} of {self.n} input codes ({self.share:.2%}) are not those of the calibrated "
            f"grid, by up to {self.max_lsb} LSB"
        ]


class AccumulatorParity(Record, frozen=True, kw_only=True):
    """n sums compared with exact integer ones. `beyond` others have Σ|q·w| > 2²⁴, where float32 proves nothing."""

    n: Count
    mismatches: Count
    beyond: Count


class OutputParity(Record, frozen=True, kw_only=True):
    """‖Δy‖/‖y‖ and max|Δy|/max|y| of the layer's output; what is allowed of the first; the operator that multiplied."""

    relative_l2: float
    relative_max: float
    limit: float
    kernel: str


class LayerParity(Record, frozen=True, kw_only=True):
    """All that is known of one layer."""

    path: str
    codes: CodeParity
    accumulators: AccumulatorParity
    output: OutputParity

    def problems(self) -> list[str]:
        sums, output = self.accumulators, self.output
        found = self.codes.problems(self.path)
        if sums.mismatches:
            found.append(
                f"{self.path}: {sums.mismatches} of {sums.n} integer sums are not Σ q·w ({output.kernel} computed them)"
            )
        if not output.relative_l2 <= output.limit:
            found.append(
                f"{self.path}: same input, output {off(output.relative_l2)}; {output.limit:.0e} would be rounding"
            )
        return found


class OperandParity(Record, frozen=True, kw_only=True):
    """One operand of attention: its codes, and how far x̂ is from the reference's."""

    path: str
    codes: CodeParity
    relative_l2: float
    limit: float

    def problems(self) -> list[str]:
        found = self.codes.problems(self.path)
        if not self.relative_l2 <= self.limit:
            found.append(
                f"{self.path}: same operand, {off(self.relative_l2)} behind its dequantizer; "
                f"{self.limit:.0e} would be rounding"
            )
        return found


class ProductParity(Record, frozen=True, kw_only=True):
    """One product of attention on the reference's codes: its operands' paths, its sums, and the operator that made them."""

    path: str
    sums: AccumulatorParity
    kernel: str
    operands: tuple[str, ...] = ()

    def problems(self) -> list[str]:
        if not self.sums.mismatches:
            return []
        return [f"{self.path}: {self.sums.mismatches} of {self.sums.n} integer sums are not Σ c·c′ ({self.kernel} ran)"]


class FloatParity(Record, frozen=True, kw_only=True):
    """‖Δx‖/‖x‖ of the input that each layer would get if all layers before it were exact, and of the logits."""

    relative_l2: dict[str, float]
    limit: float

    @property
    def worst(self) -> float:
        return max(self.relative_l2.values(), default=0.0)

    def problems(self) -> list[str]:
        return [
            f"{name}: with equal layers before it, what reaches it is {off(error)}; {self.limit:.0e} would be rounding"
            for name, error in self.relative_l2.items()
            if not error <= self.limit
        ]


class ModelParity(Record, frozen=True, kw_only=True):
    """Error and cosine of a runner's outputs on n_images, the share with the same top-1 class (None without a head), the
    noise floor, `factor` × floor as limit of the error, and half the floor's cosine as that of the cosine."""

    runner: str
    n_images: Count
    relative_l2: float
    cosine: float
    top1_agreement: float | None
    floor: NoiseFloor
    factor: float
    limit: float
    least_cosine: float

    @property
    def telling(self) -> bool:
        """Does the limit of the error tell a wrong graph from a right one? Outputs of zero are off by 1."""
        return self.limit <= TELLING

    def problems(self) -> list[str]:
        finite = self.relative_l2 < LARGEST
        if finite and not self.cosine >= self.least_cosine:
            return [
                f"{self.runner}: the outputs on {self.n_images} images have the cosine {self.cosine:.3f} to the reference's, "
                f"{self.floor.cosine:.3f} is what its own trembling leaves, {self.least_cosine:.3f} is the least allowed"
            ]
        if self.relative_l2 <= self.limit or (finite and not self.telling):
            return []
        return [
            f"{self.runner}: logits {off(self.relative_l2)} on {self.n_images} images; "
            f"{self.limit:.1e} is allowed, {self.factor:g} times what the reference itself moves when its layers' "
            f"inputs tremble by {self.floor.perturbation:.0e}"
        ]


class ParityReport(FileRecord, frozen=True, kw_only=True):
    """All levels. `executed`: what multiplies each layer in ONNX Runtime, `attention`: both products of every attention
    claimed integer; empty where the graph is for another. `blocks`: none for a model of no known family; `decision`: where the
    whole model's floor says nothing; `followed`: the whole model, ties apart."""

    WHAT: ClassVar[str] = "parity report"

    target: str
    n_images: Count
    weights: WeightParity
    layers: tuple[LayerParity, ...]
    operands: tuple[OperandParity, ...]
    products: tuple[ProductParity, ...]
    missing_operands: tuple[str, ...]  # of the reference, that the file does not have
    between: FloatParity
    model: ModelParity
    executed: dict[str, str]
    attention: dict[str, str]
    ops: dict[str, Count]
    origin: OriginParity = OriginParity()
    constants: ConstantParity = ConstantParity()
    blocks: tuple[BlockParity, ...] = ()
    decision: DecisionParity | None = None
    followed: Followed | None = None

    def problems(self) -> list[str]:
        """What is not as claimed, in plain words; empty when all is."""
        return [
            *self.origin.problems(),
            *self.constants.problems(),
            *self.weights.problems(),
            *(
                f"{path}: the reference has this operand, the file has no integers for it"
                for path in self.missing_operands
            ),
            *(problem for layer in self.layers for problem in layer.problems()),
            *(problem for operand in self.operands for problem in operand.problems()),
            *(problem for product in self.products for problem in product.problems()),
            *(
                f"{path}: claimed integer, ONNX Runtime multiplies it in float ({op})"
                for path, op in self.executed.items()
                if op not in INTEGER_GEMMS
            ),
            *(
                f"{path}: claimed integer attention, ONNX Runtime runs {products}"
                for path, products in self.attention.items()
                if not is_integer(products)
            ),
            *self.between.problems(),
            *(problem for block in self.blocks for problem in block.problems()),
            *self.model.problems(),
            *([] if self.decision is None else self.decision.problems()),
            *([] if self.followed is None else self.followed.problems()),
        ]

    def says(self) -> str:
        """The report in one sentence, with its figures."""
        all_codes = [*(layer.codes for layer in self.layers), *(operand.codes for operand in self.operands)]
        all_sums = [*(layer.accumulators for layer in self.layers), *(product.sums for product in self.products)]
        codes, wrong_codes = sum(c.n for c in all_codes), sum(c.mismatches for c in all_codes)
        sums, wrong_sums = sum(s.n for s in all_sums), sum(s.mismatches for s in all_sums)
        operands = f", {len(self.operands)} operands of attention" if self.operands else ""
        worst = max((layer.output.relative_l2 for layer in self.layers), default=0.0)
        model = self.model
        return (
            f"against the fake-quant reference on {self.n_images} images and {len(self.layers)} layers{operands}, same inputs: "
            f"{wrong_codes} of {codes} activation codes and {wrong_sums} of {sums} integer sums differ, layer outputs "
            f"{in_words(worst, 0, before='by at most ')}, float operators "
            f"{in_words(self.between.worst, 0, before='by at most ')}{self._of_blocks()}; whole model{self._ties_apart()} "
            f"{in_words(model.relative_l2)} beside a noise floor of {in_words(model.floor.relative_l2)}{self._decided()}."
        )

    def _of_blocks(self) -> str:
        """The block that comes nearest to its limit."""
        worst = max(self.blocks, key=lambda block: block.relative_l2 / block.limit, default=None)
        if worst is None:
            return ""
        return (
            f"; one of {len(self.blocks)} blocks at a time, {worst.path} comes nearest to its limit with "
            f"{in_words(worst.relative_l2)} of {in_words(worst.limit)}"
        )

    def _ties_apart(self) -> str:
        if self.followed is None or self.followed.problems():
            return ""
        return f": once ties are broken alike, {self.followed.near}, and {self.followed.otherwise}; as it runs"

    def _decided(self) -> str:
        model = self.model
        same = "" if model.top1_agreement is None else f", same class on {model.top1_agreement:.0%}"
        if model.telling:
            return same
        blocks = ""
        if self.blocks:
            telling = sum(block.telling for block in self.blocks)
            blocks = f"block by block ({telling} of {len(self.blocks)} limits tell zeros from outputs), "
        decision = "" if self.decision is None else f"; {self.decision.says()}"
        return (
            f"{same}. The reference itself moves that far when its layers' inputs tremble by {model.floor.perturbation:.0e}, so "
            f"the size of the difference proves nothing: the graph is judged layer by layer, {blocks}and by the outputs' cosine, "
            f"{model.cosine:.3f} beside {model.floor.cosine:.3f} of the trembling reference{decision}"
        )
