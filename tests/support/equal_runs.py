"""Two folders of runs, held against each other: equal to the byte where bytes are promised, else in what they say."""

import json
from pathlib import Path
from typing import Any

EQUAL_BYTES = ("bundle/*", "run.json", "*/model.onnx*", "*/manifest.json", "*/engine/plan.txt")


def differences(out: Path, other: Path) -> list[str]:
    """How two folders of runs differ, timings aside: nothing where both are whole and say the same."""
    names, others = _names(out), _names(other)
    found = [f"only in one: {name}" for name in sorted(names ^ others)]
    for pattern in EQUAL_BYTES:
        for path in sorted(out.glob(pattern)):
            name = path.relative_to(out).as_posix()
            if path.is_file() and name in others and path.read_bytes() != (other / name).read_bytes():
                found.append(f"other bytes: {name}")
    for name, timeless in {"manifest.json": _manifest, "report.json": _report}.items():
        if name in names & others:
            found += _unequal(
                timeless(json.loads((out / name).read_text())), timeless(json.loads((other / name).read_text())), name
            )
    return found


def complete(out: Path) -> bool:
    """Does the manifest say that the run ended?"""
    manifest = out / "manifest.json"
    return manifest.exists() and bool(json.loads(manifest.read_text())["complete"])


def _names(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*")}


def _manifest(manifest: dict[str, Any]) -> dict[str, Any]:
    """Without timings, the name of the folder, and engines: equal plans may be compiled to other bytes, and take other time."""
    files = [file["path"] for file in manifest["files"]]
    artifacts = {name: sha256 for name, sha256 in manifest["artifacts"].items() if not name.endswith("/engine")}
    timeless = {k: v for k, v in manifest.items() if k not in ("timings", "command")}
    return timeless | {"files": files, "artifacts": artifacts}


def _report(report: dict[str, Any]) -> dict[str, Any]:
    """Without timings, and the size and bytes of engines."""
    for target in report["targets"].values():
        if target["engine"] is not None:
            for name in ("bytes", "engine_sha256", "build_s"):
                del target["engine"][name]
    timed = ("ONNX Runtime on this CPU", "tensorrt-rtx: tensorrt_rtx ")
    verdict, *sentences = report["headline"]
    headline = [verdict.rpartition("; ")[0], *(line for line in sentences if not line.startswith(timed))]
    return {k: v for k, v in report.items() if k not in ("stages", "latency")} | {"headline": headline}


def _unequal(a: Any, b: Any, where: str) -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [line for k in a for line in _unequal(a[k], b[k], f"{where}.{k}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [line for i, (x, y) in enumerate(zip(a, b, strict=True)) for line in _unequal(x, y, f"{where}[{i}]")]
    return [] if a == b else [f"{where}: {str(a)[:80]} instead of {str(b)[:80]}"]
