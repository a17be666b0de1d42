"""What pip installs is what lies here, under one name."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("calibrate", "exporters", "validate")
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_list_of_packages_is_the_folders_on_disk() -> None:
    found = {"erq_export", *(f"erq_export.{room}" for room in ROOMS)}
    for top in (ROOT / "erq_export", *(ROOT / room for room in ROOMS)):
        inner = [p.parent for p in top.rglob("__init__.py") if p.parent != top]
        base = "erq_export" if top.name == "erq_export" else f"erq_export.{top.name}"
        found |= {".".join([base, *p.relative_to(top).parts]) for p in inner}
    assert set(CONFIG["tool"]["setuptools"]["packages"]) == found


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_is_linked_where_it_is_imported(room: str) -> None:
    link = ROOT / "erq_export" / room
    assert link.is_symlink()
    assert link.resolve() == ROOT / room
    assert CONFIG["tool"]["setuptools"]["package-dir"][f"erq_export.{room}"] == room


def test_the_rooms_import_relatively_inside_and_absolutely_outside() -> None:
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    assert not node.module.startswith(f"erq_export.{room}"), path
                if isinstance(node, ast.ImportFrom):
                    assert node.level <= len(path.relative_to(ROOT / room).parts), path


def test_every_file_opens_with_one_sentence_and_none_is_a_wall() -> None:
    files = [p for top in ("erq_export", *ROOMS, "benchmarks") for p in (ROOT / top).rglob("*.py")]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(text)), path
        assert len(text.splitlines()) <= 300, path


@pytest.mark.slow
def test_the_wheel_installs_into_an_empty_environment_and_overwrites_nobody(tmp_path: Path) -> None:
    """Only erq_export: a package that drops `validate` into site-packages would overwrite other people's."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
    assert {n.split("/")[0] for n in names} == {"erq_export", "erq_export-0.1.0.dist-info"}
    for module in (
        "calibrate/solve/aqer.py",
        "exporters/onnx/linear.py",
        "validate/parity/check.py",
        "models/demo.safetensors",
        "models/detectors/shapes.safetensors",
        "models/detectors/shapes_cascade.safetensors",
        "py.typed",
    ):
        assert f"erq_export/{module}" in names
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    code = (  # nothing but the standard library is there
        "import erq_export.calibrate, erq_export.exporters, erq_export.validate.metrics\n"
        "from erq_export.contract.errors import SpecError\n"
        "print(SpecError('w1a4', fix='w4a4').fix)"
    )
    said = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert said == "w4a4\n"
