"""What a parity report says: words of errors that are not finite, where a record keeps the largest float; ties apart."""

import re
from collections.abc import Callable

import detections
import pytest
import reports
from msgspec import structs

from erq_export.contract.parity import (
    LARGEST,
    CodeParity,
    OperandParity,
    ParityReport,
)
from erq_export.validate.report import whole


def bad(report: ParityReport, error: float) -> ParityReport:
    """The report with that error at every place that holds one."""
    codes = CodeParity(n=1, mismatches=0, max_lsb=0)
    return structs.replace(
        report,
        layers=tuple(
            structs.replace(layer, output=structs.replace(layer.output, relative_l2=error)) for layer in report.layers
        ),
        operands=(OperandParity(path="blocks.0.attn.q", codes=codes, relative_l2=error, limit=1e-6),),
        between=structs.replace(report.between, relative_l2={"head": error}),
        model=structs.replace(
            report.model, relative_l2=error, floor=structs.replace(report.model.floor, relative_l2=error)
        ),
    )


SAYS: dict[str, Callable[[ParityReport], list[str]]] = {
    "problems": lambda report: [
        text for text in report.problems() if " would be rounding" in text or "is allowed" in text
    ],
    "sentence": lambda report: [report.says()],
}


@pytest.mark.parametrize("say", SAYS)
def test_an_error_that_is_not_finite_is_said_in_words(say: str) -> None:
    texts = SAYS[say](bad(reports.parity(), LARGEST))
    assert len(texts) == (1 if say == "sentence" else 3 + len(reports.parity().layers))
    for text in texts:
        assert "not finite" in text
        assert "e+308" not in text


@pytest.mark.parametrize("say", SAYS)
def test_a_finite_error_is_a_number(say: str) -> None:
    for text in SAYS[say](bad(reports.parity(), 3e38)):
        assert re.search(r"(off by|at most) 3(\.0)?e\+38", text)
        assert "not finite" not in text


def test_a_whole_that_holds_ties_apart_is_said() -> None:
    """And one that does not is left to the problems."""
    parity = reports.parity()
    assert parity.followed is not None
    held = structs.replace(parity.followed, astray=(), n_found=None)
    said = structs.replace(parity, followed=held).says()
    assert "whole model: once ties are broken alike, outputs by at most 1.0e-07 of the largest" in said
    assert "chooses otherwise for 1 of 512 codes" in said
    assert "once ties are broken alike" not in parity.says()
    assert "once the reference breaks its ties" in held.told
    assert "see the problems" in parity.followed.told
    of_detector = structs.replace(detections.followed(), astray=())
    assert "20 detections in all" in of_detector.told
    assert "27 times between boxes" in of_detector.told
    assert whole.finds_the_same({"onnx detector": of_detector}).startswith(
        "the 20 detections of the whole in one graph"
    )
    assert "other detections" in whole.finds_the_same({"onnx detector": detections.followed()})
