"""Images prepared otherwise than the model was trained with: the report begins with a doubt, and a bound on accuracy fails."""

from pathlib import Path
from typing import Any

import pytest

import erq_export
from erq_export.contract.errors import AccuracyError
from erq_export.contract.records import read
from erq_export.contract.report import Report

FAULTS: dict[str, dict[str, Any]] = {
    "as trained": {},
    "another mean": {"mean": (2.0, 2.0, 2.0)},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_preprocessing_is_named(fault: str, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"bits": "w8a8", "method": "rtn", "to": "onnx", "calib": 8, "val_images": 100}
    asked |= {"compare": (), "seeds": 1}

    def run() -> None:
        erq_export.run("demo", out=tmp_path / "out", store=False, max_drop=50.0, preprocess=FAULTS[fault], **asked)

    if fault == "as trained":
        run()
    else:
        with pytest.raises(AccuracyError, match="--preprocess"):
            run()
    report = read(Report, tmp_path / "out" / "report.json")
    assert report.accuracy is not None
    assert report.accuracy.published_top1 == 99.16
    doubted = [text for text in report.headline if text.startswith("WARNING: The float model itself has")]
    assert bool(doubted) == (fault != "as trained") == ("doubt the data" in report.headline[0])
    assert bool(report.problems) == (fault != "as trained")
