"""What parity found, level by level, in tables; a level that this file does not know is shown as its record has it."""

from collections.abc import Iterator, Sequence
from typing import Any

from erq_export.contract.followed import multiple
from erq_export.contract.parity import LARGEST, ParityReport, in_words
from erq_export.contract.records import Record, plain_of

from .tables import Table

KNOWN = {
    *("target", "n_images", "weights", "layers", "operands", "products", "missing_operands"),
    *("between", "model", "executed", "attention", "ops", "origin", "constants", "blocks", "decision", "followed"),
}


def levels(parity: ParityReport) -> Table:
    """One line a level, most local first: what was compared, how far it is off at most, what is allowed, and the verdict."""
    head = ("level", "compared", "off", "allowed", "")
    return head, [list(row) for row in _levels(parity)]


def layers(parity: ParityReport) -> Table:
    """One line a layer or operand of attention, teacher-forced: the same input on both sides."""
    head = ("layer", "codes off", "sums off", "not provable", "output off", "allowed", "kernel")
    body = [
        [
            layer.path,
            f"{layer.codes.mismatches:,} of {layer.codes.n:,}",
            f"{layer.accumulators.mismatches:,} of {layer.accumulators.n:,}",
            f"{layer.accumulators.beyond:,}",
            in_words(layer.output.relative_l2),
            f"{layer.output.limit:.0e}",
            layer.output.kernel,
        ]
        for layer in parity.layers
    ]
    body += [
        [
            operand.path,
            f"{operand.codes.mismatches:,} of {operand.codes.n:,}",
            *("", ""),
            in_words(operand.relative_l2),
            f"{operand.limit:.0e}",
            "",
        ]
        for operand in parity.operands
    ]
    body += [
        [p.path, "", f"{p.sums.mismatches:,} of {p.sums.n:,}", f"{p.sums.beyond:,}", "", "", p.kernel]
        for p in parity.products
    ]
    return head, body


def blocks(parity: ParityReport) -> Table:
    """One line a block, in the file and in PyTorch on the same input."""
    head = ("block", "output off", "allowed", "its own noise", "")
    return head, [
        [
            block.path,
            in_words(block.relative_l2),
            in_words(block.limit) + ("" if block.telling else ", which says little"),
            in_words(block.floor.relative_l2),
            "FAILED" if block.problems() else "holds",
        ]
        for block in parity.blocks
    ]


def others(parity: ParityReport) -> dict[str, Table]:
    """Levels that are not known here, by field: parity may learn to look at more than this page was written for."""
    fields = {name: getattr(parity, name) for name in parity.__struct_fields__ if name not in KNOWN}
    return {
        name.replace("_", " "): of_value(value) for name, value in fields.items() if value not in (None, (), {}, "")
    }


def of_value(value: Any) -> Table:
    """Any part of a record as a table: records side by side as rows, anything else as name and value."""
    if isinstance(value, Sequence) and value and all(isinstance(item, Record) for item in value):
        rows = [dict(_flat(plain_of(item))) for item in value]
        head = tuple(dict.fromkeys(name for row in rows for name in row))
        return head, [[row.get(name, "") for name in head] for row in rows]
    plain = plain_of(value) if isinstance(value, Record) else {"": value}
    return ("", "value"), [list(pair) for pair in _flat(plain)]


def _levels(parity: ParityReport) -> Iterator[tuple[str, ...]]:
    weights, between, model = parity.weights, parity.between, parity.model
    codes = [*(layer.codes for layer in parity.layers), *(operand.codes for operand in parity.operands)]
    sums = [*(layer.accumulators for layer in parity.layers), *(product.sums for product in parity.products)]
    if parity.origin.bundle is not None:
        yield _row("bundle that it names", "graph and manifest", "", "", parity.origin.problems())
    yield _row(
        "weights", f"{weights.n_integers:,} integers", f"{sum(weights.different.values()):,}", "0", weights.problems()
    )
    if (n := parity.constants.n) or parity.constants.different:
        different = len(parity.constants.different)
        yield _row("other numbers of the file", f"{n:,} tensors", f"{different:,}", "0", different)
    n_codes = sum(c.mismatches for c in codes)
    yield _row("activation codes, same input", f"{sum(c.n for c in codes):,} codes", f"{n_codes:,}", "0", n_codes)
    n_sums = sum(s.mismatches for s in sums)
    yield _row("integer sums, same codes", f"{sum(s.n for s in sums):,} sums", f"{n_sums:,}", "0", n_sums)
    outputs = [layer.output for layer in parity.layers]
    if outputs:
        worst = max(outputs, key=lambda output: output.relative_l2 / output.limit if output.limit else LARGEST)
        wrong = [output for output in outputs if not output.relative_l2 <= output.limit]
        yield _row(
            "layer, same input", f"{len(outputs)} outputs", in_words(worst.relative_l2), f"{worst.limit:.0e}", wrong
        )
    what = f"{len(between.relative_l2)} places"
    yield _row("between layers", what, in_words(between.worst), f"{between.limit:.0e}", between.problems())
    if parity.blocks:
        block = max(parity.blocks, key=lambda block: block.relative_l2 / block.limit if block.limit else LARGEST)
        wrong_blocks = [other for other in parity.blocks if other.problems()]
        yield _row(
            "block, same input",
            f"{len(parity.blocks)} blocks",
            in_words(block.relative_l2),
            in_words(block.limit),
            wrong_blocks,
        )
    if (followed := parity.followed) is not None:
        for kind, ties in followed.ties.items():
            what = f"{ties.n:,} {kind}, {ties.other:,} otherwise by the reference alone"
            yield _row("whole model, ties", what, multiple(ties.furthest), "1 (rounding)", not ties.explained)
        for kind, value in followed.values.items():
            what = f"{kind} on {followed.n_images} images"
            yield _row(
                "whole model, ties apart", what, in_words(value.largest), f"{value.limit:.0e}", not value.explained
            )
        if followed.astray:
            yield _row("whole model, ties apart", "counts", f"{len(followed.astray)}", "0", followed.astray)
    images = f"{model.n_images} images, {model.runner}"
    said = in_words(model.limit) if model.telling else f"{in_words(model.limit)}, which says little"
    yield _row("whole model", images, in_words(model.relative_l2), said, model.problems())
    yield _row(
        "whole model, cosine", images, f"{model.cosine:.4f}", f"{model.least_cosine:.4f} at least", model.problems()
    )
    if model.top1_agreement is not None:
        yield ("same class", images, f"{model.top1_agreement:.0%}", "", "")
    if (decision := parity.decision) is not None:
        yield _row(
            "keeps the reference's class",
            f"{decision.n_images} images",
            f"{decision.graph.value:.1f} %",
            f"{decision.trembling.value:.1f} % by the trembling reference",
            decision.problems(),
        )
    floor = model.floor
    yield (
        "noise of the reference itself",
        f"{len(floor.draws)} draws at {floor.perturbation:.0e}",
        *(in_words(floor.relative_l2), "", ""),
    )


def _row(level: str, compared: str, off: str, allowed: str, wrong: Any) -> tuple[str, ...]:
    return (level, compared, off, allowed, "FAILED" if wrong else "holds")


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of plain data by their dotted names; lists of more than a few numbers as their length."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}".strip("."))
    elif isinstance(value, (list, tuple)):
        few = len(value) <= 4 and not any(isinstance(item, (dict, list, tuple)) for item in value)
        yield name, ", ".join(_cell(item) for item in value) if few else f"{len(value)} values"
    else:
        yield name, _cell(value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if value < LARGEST else "not finite"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
