"""What the demo's bundles and graphs hold, as hashes: what no restructuring may change.

    python tests/support/unchanged.py             says for every case what differs from tests/golden/unchanged.json
    python tests/support/unchanged.py --record    writes that file, or adds this processor to it where nothing else differs

The command line and the files that it writes are all that is used, so the check outlives any move inside the package. There
are three kinds of facts, because sums are added in another order where vectors are shorter (AVX2 instead of AVX-512). The
number of threads changes none of them.

structure   names, types and shapes of all tensors, the graphs' nodes in order: equal on every processor
figures     a few numbers a layer and operand: equal on every processor within LIMITS
digests     every bit of every tensor, bits and bounds of every grid: equal on the processors named in the file
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors.torch import load_file
from torch import Tensor

from erq_export.backends.machine import processor

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "tests" / "golden" / "unchanged.json"
PACKAGES = ("torch", "timm", "numpy", "numba", "onnx", "onnx-ir", "onnxscript", "safetensors")

BOTH = ("--to", "onnx", "--to", "tensorrt-rtx")
# the defaults that there were when the file was recorded: better ones came, and these still mean what they did
ANY = ("-O", "input_percentiles=repq", "-O", "range_error=input")
FOLDING = (*ANY, "-O", "fold_values=false")
THEN = {
    "erq": (*FOLDING, "-O", "ridge=100", "-O", "patch_factor=10", "-O", "class_weight=1", "-O", "rotate=none"),
    "gptq": FOLDING,
    "repq": FOLDING,
    "rtn": ANY,
}
CASES: dict[str, tuple[str, ...]] = {
    f"{bits} {method}": ("--bits", bits, "--method", method, *THEN[method], *BOTH)
    for bits in ("w4a4", "w3a4")
    for method in ("erq", "gptq", "repq", "rtn")
} | {
    "w4a4 erq, int8 attention": ("--bits", "w4a4", "--attention", "int8", *THEN["erq"], *BOTH),
    "w4a4 erq, packed in int4": ("--bits", "w4a4", "--pack", "int4", *THEN["erq"], *BOTH),
    "w4a4 icml as published": ("--bits", "w4a4", "--to", "reference", "--published", "icml", "-O", "ridge=100"),
}
# One layer's figures and by how much of themselves they may differ on a processor that the file does not name: about five
# times what the worst layer of all cases moved with AVX-512 switched off in torch, MKL and Numba (codes 2e-3, weight scales
# 1e-3, errors 4e-3, the rest not at all). There a weight on the border between two integers falls the other way or a row
# finds another range as good, and what compensates for it follows.
LIMITS = {"codes": 1e-2, "weight_scale": 6e-3, "input_scale": 1e-3, "qmin": 1e-3, "qmax": 1e-3, "error": 2e-2}
LONGEST_S = 300  # a case takes 8 to 17 s
START = "from erq_export.cli import main; main()"  # what the installed `erq-export` does, from this tree


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What one run left behind: name → digest, name → digest, module path → figures by name."""

    structure: dict[str, str]
    digests: dict[str, str]
    figures: dict[str, dict[str, float]]


def facts(case: str, folder: Path, environment: dict[str, str] | None = None) -> Facts:
    """Run a case into a new folder inside `folder`, and read what it wrote.

    `environment` is added to this process's own. RuntimeError with the run's last words if it wrote less than it should.
    """
    out = Path(tempfile.mkdtemp(dir=folder)) / "out"
    words = CASES[case]
    targets = [word for before, word in pairwise(words) if before == "--to" and word != "reference"]
    files = [out / "bundle" / "tensors.safetensors", out / "bundle" / "bundle.json"]
    graphs = {target: out / target / "model.onnx" for target in targets}
    run_until([*files, *graphs.values()], words, out, {"ERQ_EXPORT_STORE": str(folder / "store")} | (environment or {}))
    tensors, description = load_file(files[0]), json.loads(files[1].read_text(encoding="utf-8"))
    bundle_outline = [(name, str(t.dtype), tuple(t.shape)) for name, t in sorted(tensors.items())]
    grids = grid_rows(description)
    structure = {"bundle": digest(bundle_outline), "grids": digest(row[:-2] for row in grids)}
    digests = {
        "bundle": digest((*row, raw(tensors[row[0]])) for row in bundle_outline),
        "grids": digest(grids),
    }
    for target, path in graphs.items():
        model = onnx.load(path)
        constants = sorted(initializers(model), key=lambda row: row[0])
        structure[f"{target} nodes"] = digest(nodes(model))
        structure[f"{target} constants"] = digest(row[:3] for row in constants)
        digests[f"{target} constants"] = digest(constants)
    return Facts(structure=structure, digests=digests, figures=figures(tensors, description))


def run_until(files: list[Path], words: tuple[str, ...], out: Path, environment: dict[str, str]) -> None:
    """Run the main job on the demo and end it once `files` are there: what it measures afterwards takes most of its time.

    A stage's files appear at once or not at all, so each is complete as soon as it is seen.
    """
    bits = words[words.index("--bits") + 1]
    quick = ("--device", "cpu", "--seeds", "1", "--compare", bits, "--val-images", "1")
    command = [sys.executable, "-c", START, "demo", *words, *quick, "--out", str(out)]
    log, end = out.with_name("log"), time.monotonic() + LONGEST_S
    with (
        log.open("wb") as said,
        subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=said, stderr=said) as process,
    ):
        while process.poll() is None and not all(path.exists() for path in files) and time.monotonic() < end:
            time.sleep(0.05)
        process.kill()
    if missing := [path.name for path in files if not path.exists()]:
        last = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(command)}\nwrote no {', '.join(missing)} in {LONGEST_S} s; it said:\n{last}")


def digest(rows: Iterable[Any]) -> str:
    """sha256 over rows of text, numbers and bytes; row ends count."""
    total = hashlib.sha256()
    for row in rows:
        total.update(repr(row).encode())
        total.update(b"\n")
    return total.hexdigest()


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def grid_rows(description: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Bits of every layer and operand in bundle.json, with the bounds of its input at the end; absent ones are None."""
    layers = [
        ("layer", row["path"], row["w_bits"], row["a_bits"], *bounds(row.get("act"))) for row in description["layers"]
    ]
    operands = [
        ("operand", row["path"], row["role"], row["bits"], *bounds(row.get("grid"))) for row in description["operands"]
    ]
    return sorted(layers) + sorted(operands)


def bounds(grid: dict[str, Any] | None) -> tuple[float | None, float | None]:
    """(qmin, qmax) of a grid, None where it has none."""
    return number(grid or {}, "qmin"), number(grid or {}, "qmax")


def number(row: dict[str, Any] | None, name: str) -> float | None:
    """A whole number may be stored as an integer or as a float: the same bound."""
    return None if row is None or row.get(name) is None else float(row[name])


def initializers(model: onnx.ModelProto) -> list[tuple[str, int, tuple[int, ...], bytes]]:
    """(name, type, shape, values): values unpacked, however the file stores them."""
    return [
        (t.name, t.data_type, tuple(t.dims), np.ascontiguousarray(onnx.numpy_helper.to_array(t)).tobytes())
        for t in model.graph.initializer
    ]


def nodes(model: onnx.ModelProto) -> list[tuple[Any, ...]]:
    """Opsets, inputs and outputs with their shapes, then every node in order; no metadata."""
    if model.functions or model.graph.sparse_initializer:
        raise ValueError("functions and sparse constants are not compared here: the graphs had none when recorded")
    ends = [
        (value.name, value.type.SerializeToString(deterministic=True))
        for value in (*model.graph.input, *model.graph.output)
    ]
    inner = [
        (n.domain, n.op_type, n.name, tuple(n.input), tuple(n.output), sorted(attribute(a) for a in n.attribute))
        for n in model.graph.node
    ]
    opsets = [(o.domain, o.version) for o in model.opset_import]
    return [*sorted(opsets), *ends, *inner]


def attribute(a: onnx.AttributeProto) -> tuple[str, int, bytes]:
    plain = onnx.AttributeProto()
    plain.CopyFrom(a)
    plain.ClearField("doc_string")
    return a.name, a.type, plain.SerializeToString(deterministic=True)


def figures(tensors: dict[str, Tensor], description: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By module path, 0 where there is none: mean size of the codes, mean weight scale, scale and bounds of the input,
    relative output error."""
    errors = {row["path"]: row["statistics"]["error"] for row in description["layers"]}
    found = {}
    for kind, path, *_, qmin, qmax in grid_rows(description):
        names = ("weight_q", "weight_scale", "act_scale" if kind == "layer" else "scale")
        sizes = [
            tensors[name].double().abs() if name in tensors else None for name in (f"{kind}.{path}.{n}" for n in names)
        ]
        means = [0.0 if size is None else float(size.mean()) for size in sizes]
        found[path] = dict(zip(LIMITS, [*means, qmin or 0.0, qmax or 0.0, errors.get(path, 0.0)], strict=True))
    return found


def differences(case: str, found: Facts, record: dict[str, Any], machine: str) -> list[str]:
    """What differs from the record, in words; empty if nothing does."""
    was = record["cases"][case]
    said = [f"{case}: structure of {name}" for name in unlike(found.structure, was["structure"])]
    if machine in record["processors"]:
        known = record["processors"][machine]
        said += [f"{case}: bytes of {name}" for name in unlike(found.digests, known["digests"][case])]
    figures_then = {path: read_figures(text) for path, text in was["figures"].items()}
    said += [f"{case}: the list of layers and operands"] * (figures_then.keys() != found.figures.keys())
    for path in (path for path in figures_then if path in found.figures):
        for name, limit in LIMITS.items():
            before, now = figures_then[path][name], found.figures[path][name]
            if not abs(now - before) <= limit * abs(before):
                said.append(f"{case}: {name} of {path} was {before:.6g}, is {now:.6g}")
    return said


def unlike(found: dict[str, str], was: dict[str, str]) -> list[str]:
    return [name for name in sorted(found.keys() | was.keys()) if found.get(name) != was.get(name)]


def read_figures(text: str) -> dict[str, float]:
    return dict(zip(LIMITS, map(float, text.split()), strict=True))


def read_record() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return record


def versions() -> dict[str, str]:
    """Packages that may change bytes: recorded to say what else is different where bytes are."""
    return {name: version(name) for name in PACKAGES}


def recorded(found: dict[str, Facts], before: dict[str, Any] | None, machine: str) -> dict[str, Any]:
    """The record with this processor's digests, beside those of others if structure and figures are what they were.

    Otherwise nothing of the old record is kept: the other processors have to record again.
    """
    mine = {"versions": versions(), "digests": {case: f.digests for case, f in found.items()}}
    if before is not None and before["cases"].keys() == found.keys():
        others = {name: row for name, row in before["processors"].items() if name != machine}
        if not any(differences(case, f, before | {"processors": others}, machine) for case, f in found.items()):
            return {"cases": before["cases"], "processors": others | {machine: mine}}
    cases = {
        case: {
            "structure": f.structure,
            "figures": {path: " ".join(f"{v:.6g}" for v in row.values()) for path, row in f.figures.items()},
        }
        for case, f in found.items()
    }
    return {"cases": cases, "processors": {machine: mine}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.relative_to(ROOT)}")
    record_it = parser.parse_args().record
    before, machine = read_record() if RECORD.exists() else None, processor()
    found: dict[str, Facts] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            start = time.perf_counter()
            found[case] = facts(case, Path(folder))
            said = ["not recorded yet"]
            if before is not None and case in before["cases"]:
                said = differences(case, found[case], before, machine)
            sys.stdout.write(f"{time.perf_counter() - start:5.1f} s  {case}: {'; '.join(said) or 'unchanged'}\n")
    if record_it:
        text = json.dumps(recorded(found, before, machine), indent=1, ensure_ascii=False)
        RECORD.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
