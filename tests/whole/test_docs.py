"""Every command in README and docs does what it says, in order, in one folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from erq_export.contract.records import read
from erq_export.contract.report import Report
from erq_export.models.names import architecture

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
OWN_MODEL = {"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4, "num_classes": 36}


def commands(page: Path) -> list[str]:
    """The lines of the page's `sh` blocks, continuation lines joined."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted: photos, labelled images of 36 classes, one's own weights."""
    path, rng = tmp_path_factory.mktemp("user"), np.random.default_rng(0)
    (path / "photos" / "more").mkdir(parents=True)
    for i in range(32):
        name = f"more/{i}.jpg" if i % 2 else f"{i}.png"
        Image.fromarray(rng.integers(0, 255, (40, 48), dtype=np.uint8)).save(path / "photos" / name)  # one channel
    for i in range(36):
        (path / "labelled" / f"class_{i:02d}").mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(path / f"labelled/class_{i:02d}/0.png")
    save_file(architecture("vit_tiny_patch16_224", OWN_MODEL).state_dict(), path / "my.safetensors")
    return path


def test_make_commands_are_what_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    made = [c for page in PAGES for c in commands(page) if c.startswith("make ")]
    assert {"make demo", "make test"} <= set(made)
    assert all(c in ci for c in made)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_the_page_runs(page: Path, folder: Path) -> None:
    """`make` lines are CI's own. vit_s is the full-size model: its stages' costs are in its report."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for command in commands(page):
        if command.startswith("make "):
            continue
        ran = subprocess.run(
            command, shell=True, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"


@pytest.mark.slow
def test_the_full_size_model_went_the_whole_way(folder: Path) -> None:
    """What the README's vit_s command left: 50 integer layers compiled, 12 attentions fused, the costs of every stage."""
    report = read(Report, folder / "out" / "vit_s" / "report.json")
    assert report.headline[0].startswith("Random weights")
    assert report.problems == ()
    engine = report.targets["tensorrt-rtx"].engine
    assert engine is not None
    plan = engine.plan
    assert (plan.gemm, sum(plan.attention.values())) == ({"int8": 50}, 12)
    costs = {s.name: (s.wall_s, s.peak_mib) for s in report.stages}
    assert {"load", "calibrate", "export", "build tensorrt-rtx", "parity"} <= set(costs)
    sys.stdout.write("\n".join(f"{name}: {wall:.1f} s, {mib:.0f} MiB" for name, (wall, mib) in costs.items()) + "\n")
