"""From a graph's folder to an engine's: build it, save it with its plan, and hold the plan against the graph's claims."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .engine_watch import Progress
from .plan import plan_text, precision_by_node, summarize
from .tensorrt import Package, build_engine

ENGINE, RECORD, PLAN, LOG = "model.engine", "engine.json", "plan.txt", "build.log"
ENGINE_FORMAT = 1


def build(
    graph: Path,
    manifest: dict[str, Any],
    folder: Path,
    *,
    package: Package,
    compute_capabilities: Sequence[str],
    batch: tuple[int, int, int],
    on_progress: Progress | None,
) -> dict[str, Any]:
    """Build `graph`; write engine, log, plan and record into `folder`; returns the record.

    The record's `problems` are what the plan runs differently from what the manifest claims, in plain words.
    Raises MachineError, SpecError or EngineError (see `build_engine`).
    """
    engine = build_engine(
        graph,
        package=package,
        compute_capabilities=compute_capabilities,
        batch=batch,
        on_progress=on_progress,
    )
    (folder / ENGINE).write_bytes(engine.blob)
    (folder / LOG).write_text("\n".join(engine.log) + "\n", encoding="utf-8")
    (folder / PLAN).write_text(plan_text(engine.layers), encoding="utf-8")
    summary = asdict(summarize(engine.layers))
    executed = precision_by_node(engine.layers)
    record = {
        "format": ENGINE_FORMAT,
        "package": engine.package,
        "version": engine.version,
        "compute_capabilities": list(engine.compute_capabilities),
        "batch": dict(zip(("smallest", "optimal", "largest"), batch, strict=True)),
        "bytes": len(engine.blob),
        "plan": summary,
        "precision": {site["path"]: executed.get(site["path"], "absent") for site in manifest["sites"]},
        "problems": claims_broken(manifest, summary, executed),
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def claims_broken(manifest: dict[str, Any], summary: dict[str, int], executed: Mapping[str, str]) -> list[str]:
    """What the compiled plan runs differently from what the graph's manifest claims; empty when it keeps its word."""
    problems = [
        f"{site['path']} is claimed integer and runs in {executed.get(site['path'], 'no layer of the plan')}"
        for site in manifest["sites"]
        if executed.get(site["path"]) != "int8"
    ]
    claims = manifest["claims"]
    integer = summary["int8_gemm"] + summary["int8_conv"]
    if integer != claims["int8_gemm"]:
        problems.append(f"the graph claims {claims['int8_gemm']} INT8 GEMMs, the plan has {integer}")
    if summary["fp_gemm"] != claims["fp_gemm"]:
        problems.append(f"the graph claims {claims['fp_gemm']} floating-point GEMMs, the plan has {summary['fp_gemm']}")
    fused = summary["int8_attention"] + summary["fp_attention"]
    if fused != claims["attention"]:
        problems.append(f"the graph has {claims['attention']} attention operators, the plan fuses {fused}")
    return problems
