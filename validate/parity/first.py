"""The differences that a parity report holds, in the order of the forward pass: the first is where things went wrong.

At a site data passes: the LayerNorm, the float operators since the site before, Clip, scale, zero point, codes, the integers of
the weight, scales behind the quantizer, sums, bias, output. A block's own output comes after its sites, the whole model last.
"""

from collections.abc import Iterator

from erq_export.contract.bisection import Difference, Kind
from erq_export.contract.block_parity import BlockParity
from erq_export.contract.constant_parity import BEHIND
from erq_export.contract.parity import INTEGER_GEMMS, LayerParity, OperandParity, ParityReport

MODEL = "model"  # the block of what no block holds


def differences(report: ParityReport) -> list[Difference]:
    """All of them, in order; as many as `report.problems()` has, and empty exactly where that is."""
    return list(_origin(report)) + _Walk(report).all()


def _origin(report: ParityReport) -> Iterator[Difference]:
    for text in report.origin.problems():
        yield Difference(block=MODEL, site="", kind="origin", found=None, bound=None, says=text)


class _Walk:
    def __init__(self, report: ParityReport) -> None:
        self.report = report
        self.layers = {layer.path: layer for layer in report.layers}
        self.operands = {operand.path: operand for operand in report.operands}

    def all(self) -> list[Difference]:
        found: list[Difference] = []
        seen: set[str] = set()
        for block in self.report.blocks:
            for site in block.sites:
                found += self._site(block.path, site)
            found += self._block(block)
            seen |= set(block.sites)
        sites = [*self.layers, *self.operands, *self.report.weights.missing, *self.report.missing_operands]
        sites += [difference.path for difference in self.report.constants.different]
        for site in dict.fromkeys(sites):
            if site not in seen:
                found += self._site(MODEL, site)
        return found + list(self._whole())

    def _site(self, block: str, site: str) -> Iterator[Difference]:
        report = self.report

        def one(kind: Kind, problem: str, found: float | None = None, bound: float | None = None) -> Difference:
            return Difference(block=block, site=site, kind=kind, found=found, bound=bound, says=problem)

        constants = [d for d in report.constants.different if d.path == site]
        before = [d for d in constants if d.name not in BEHIND]
        if (error := report.between.relative_l2.get(site)) is not None and not error <= report.between.limit:
            text = next(p for p in report.between.problems() if p.startswith(f"{site}: "))
            yield one("float operators", text, error, report.between.limit)
        for constant in before:
            yield one(constant.name, constant.problem())
        part: LayerParity | OperandParity | None = self.layers.get(site) or self.operands.get(site)
        if part is not None and part.codes.mismatches:
            yield one("codes", part.codes.problems(site)[0], part.codes.mismatches, 0)
        for text in report.weights.problems():
            if text.startswith(f"{site}: "):
                yield one("weight integers", text, report.weights.different.get(site), 0)
        if site in report.missing_operands:
            yield one("codes", f"{site}: the reference has this operand, the file has no integers for it")
        yield from (one(constant.name, constant.problem()) for constant in constants if constant.name in BEHIND)
        yield from self._computed(block, site, part)

    def _computed(self, block: str, site: str, part: LayerParity | OperandParity | None) -> Iterator[Difference]:
        """Sums, kernel and output of a site."""
        if isinstance(part, LayerParity):
            texts = part.problems()
            if part.accumulators.mismatches:
                text = next(t for t in texts if "integer sums" in t)
                yield _at(block, site, "sums", text, part.accumulators.mismatches, 0)
            op = self.report.executed.get(site)
            if op is not None and op not in INTEGER_GEMMS:
                text = f"{site}: claimed integer, ONNX Runtime multiplies it in float ({op})"
                yield _at(block, site, "kernel", text, None, None)
            if not part.output.relative_l2 <= part.output.limit:
                yield _at(block, site, "output", texts[-1], part.output.relative_l2, part.output.limit)
        elif isinstance(part, OperandParity):
            if not part.relative_l2 <= part.limit:
                yield _at(block, site, "output", part.problems()[-1], part.relative_l2, part.limit)
            for product in self.report.products:
                last = max(product.operands, key=list(self.operands).index, default=None)
                if last == site and product.sums.mismatches:
                    yield _at(block, site, "sums", product.problems()[0], product.sums.mismatches, 0)

    def _block(self, block: BlockParity) -> Iterator[Difference]:
        for text in block.problems():
            yield _at(block.path, "", "block output", text, block.relative_l2, block.limit)

    def _whole(self) -> Iterator[Difference]:
        report = self.report
        for path in report.attention:
            for text in report.problems():
                if text.startswith(f"{path}: claimed integer attention"):
                    yield _at(MODEL, path, "kernel", text, None, None)
        if (error := report.between.relative_l2.get("logits")) is not None and not error <= report.between.limit:
            text = report.between.problems()[-1]
            yield _at(MODEL, "", "float operators", text, error, report.between.limit)
        for text in report.model.problems():
            yield _at(MODEL, "", "whole model", text, report.model.relative_l2, report.model.limit)
        if report.decision is not None:
            for text in report.decision.problems():
                yield _at(MODEL, "", "decisions", text, report.decision.p, report.decision.least_p)
        if report.followed is not None:
            figures = [(ties.furthest, 1.0) for ties in report.followed.ties.values() if not ties.explained]
            figures += [(gap.largest, gap.limit) for gap in report.followed.values.values() if not gap.explained]
            counts = [(None, None)] * len(report.followed.astray)
            for text, (found, bound) in zip(report.followed.problems(), (*counts, *figures), strict=True):
                yield _at(MODEL, "", "ties apart", text, found, bound)


def _at(block: str, site: str, kind: Kind, says: str, found: float | None, bound: float | None) -> Difference:
    return Difference(block=block, site=site, kind=kind, found=found, bound=bound, says=says)
