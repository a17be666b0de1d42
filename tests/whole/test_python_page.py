"""The Python of docs/python.md does what the page says, and one job is one bundle, however it is asked for."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Erq, write_images
from tiny_vit import TINY, TINY_ARGS
from torch.utils.data import DataLoader, TensorDataset

import erq_export
from erq_export.contract.bundle import Bundle
from erq_export.contract.errors import DataError, ErqError, SpecError
from erq_export.models.names import architecture

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def saved(bundle: Bundle, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    bundle.save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    program = "\n".join(
        re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    match = re.fullmatch(r"top-1 ([0-9.]+) %, the reference's class on ([0-9.]+) % of 597 images\n", ran.stdout)
    assert match, ran.stdout
    assert float(match[1]) > 80  # training took seconds
    assert float(match[2]) > 98
    assert (tmp_path / "out" / "digits" / "onnx" / "model.onnx").is_file()
    assert "top-1" in (tmp_path / "out" / "digits_run" / "report.md").read_text().lower()


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, erq_export, erq_export.calibrate, erq_export.validate\n"
        "assert callable(erq_export.calibrate) and callable(erq_export.validate)\n"
        "print(sorted({'torch', 'timm', 'onnx', 'numpy', 'msgspec', 'PIL'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "[]\n"


def test_one_job_is_one_bundle_for_command_line_and_python(erq: Erq, tmp_path: Path) -> None:
    """Byte for byte, description included."""
    photos = write_images(tmp_path / "photos", 6)
    words = [word for k, v in TINY_ARGS.items() for word in ("--model-arg", f"{k}={v}")]
    words += ["--bits", "w4a4", "--calib", "4", "--no-pretrained", "-O", "ridge=100", "--no-store"]
    code, said = erq(TINY, *words, "--to", "onnx", "--data", photos, "--out", tmp_path / "out")
    assert code == 0, said
    bundle = erq_export.calibrate(
        TINY, bits="w4a4", to="onnx", data=photos, calib=4, pretrained=False, model_args=TINY_ARGS,
        options={"ridge": 100.0}, store=False,
    )  # fmt: skip
    files = saved(bundle, tmp_path / "again")
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "out" / "bundle").iterdir()}


IMAGES = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 5
LOADER = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=5)


@pytest.mark.parametrize(
    "data", [IMAGES, list(IMAGES.split(5)), LOADER, iter(LOADER)], ids=["tensor", "list", "loader", "iterator"]
)
def test_the_same_images_give_the_same_bundle_in_whatever_form_they_come(data: Any, tmp_path: Path) -> None:
    module = architecture(TINY, TINY_ARGS)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    asked: dict[str, Any] = {"bits": "w4a4", "to": ("onnx", "tensorrt-rtx"), "calib": 12, "options": {"ridge": 100.0}}
    found = erq_export.calibrate(module, data=data, **asked)
    want = erq_export.calibrate(module, data=IMAGES, **asked)
    assert saved(found, tmp_path / "a") == saved(want, tmp_path / "b")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_an_own_module_goes_from_calibration_to_a_checked_graph(tmp_path: Path) -> None:
    bundle = erq_export.calibrate(architecture(TINY, TINY_ARGS), bits="w8a8", data=LOADER, calib=12)
    graph = erq_export.export(bundle, to="onnx", out=tmp_path)
    found = erq_export.validate(bundle, graph, data=LOADER)
    assert (graph.path, found.n_images) == (tmp_path / "onnx" / "model.onnx", 12)
    assert found.parity.problems() == []
    assert set(found.top1) == {"reference", "onnx"}
    assert erq_export.validate(bundle, graph, data=IMAGES).top1 == {}
    assert erq_export.check(graph.path, "onnx").errors == 0


def bad_batches() -> dict[str, Any]:
    nan = IMAGES.clone()
    nan[3, 0, 0, 0] = torch.nan
    return {
        "no image": [],
        "no batches": 7,
        "of one image": [IMAGES[0]],
        "integers": [IMAGES.to(torch.uint8)],
        "text": ["a", "b"],
        "none": [None],
        "NaN": [nan],
        "other sizes": [IMAGES[:6], IMAGES[:, :, :8]],
        "another size": torch.zeros(12, 3, 8, 8),
        "one channel": torch.zeros(12, 1, 16, 16),
        "too few": IMAGES[:3],
        "labels missing": [(IMAGES, LABELS[:3])],
        "a dict": {"images": IMAGES},
    }


@pytest.mark.parametrize("kind", bad_batches())
def test_data_that_cannot_be_used_is_refused_with_a_fix(kind: str) -> None:
    with pytest.raises(DataError) as caught:
        erq_export.calibrate(architecture(TINY, TINY_ARGS), bits="w4a4", data=bad_batches()[kind], calib=12)
    assert caught.value.fix


@pytest.mark.parametrize(
    "module",
    [torch.nn.Linear(3, 4), torch.nn.Sequential(architecture(TINY, TINY_ARGS)), torch.nn.Identity()],
    ids=["linear", "wrapped", "identity"],
)
def test_a_module_of_no_known_family_is_refused(module: torch.nn.Module) -> None:
    with pytest.raises(SpecError, match="no family is known"):
        erq_export.calibrate(module, bits="w4a4", data=IMAGES)


def test_a_module_that_its_name_does_not_build_is_refused() -> None:
    module = architecture(TINY, TINY_ARGS)
    module.blocks[0].mlp.act = torch.nn.ReLU()  # type: ignore[union-attr,index]
    with pytest.raises(SpecError, match="computes something else") as caught:
        erq_export.calibrate(module, bits="w4a4", data=IMAGES, calib=12)
    assert "architecture=" in caught.value.fix
    with pytest.raises(ErqError):
        erq_export.calibrate(architecture(TINY, TINY_ARGS), bits="w4a4", data=IMAGES, architecture=(TINY, {"depth": 1}))
