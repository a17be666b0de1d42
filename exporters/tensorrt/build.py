"""From a graph's folder to an engine's: build it, save it with its plan, and hold the plan against the graph's claims."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from erq_export.backends.tensorrt import Package, build_engine
from erq_export.backends.watch import BuildProgress
from erq_export.contract.engine import ENGINE as RECORD
from erq_export.contract.engine import MODEL as ENGINE
from erq_export.contract.engine import TIMINGS, Batch, EngineRecord, Gpu
from erq_export.contract.engine_spec import EngineSpec
from erq_export.contract.files import graph_sha256
from erq_export.contract.manifest import WORDS, AttentionOperator, GraphManifest, by_path
from erq_export.contract.records import encode

from .plan import (
    PlanLayer,
    attention_by_operator,
    compiled,
    plan_text,
    precision_by_node,
    products_apart,
    products_merged,
    summarize,
)

FLOATING = WORDS.keys() - {"int8"}
PLAN, LOG = "plan.txt", "build.log"


def build(
    graph: Path,
    manifest: GraphManifest,
    folder: Path,
    *,
    package: Package,
    asked: EngineSpec,
    gpu: Gpu | None,
    on_progress: BuildProgress | None,
    timing_cache: bytes | None = None,
) -> EngineRecord:
    """Build `graph`; write engine, log, plan, record and timing cache, where there is one, into `folder`; returns the record.

    gpu: that this machine builds on, None for a package that builds ahead of time.  timing_cache: of an earlier build.

    The record's `problems` are what the plan runs differently from what the manifest claims, in plain words.
    Raises MachineError, SpecError or EngineError (see `build_engine`).
    """
    engine = build_engine(
        graph,
        package=package,
        compute_capabilities=asked.capability,
        batch=asked.batch,
        on_progress=on_progress,
        workspace_mib=asked.workspace,
        hardware=asked.hardware,
        any_version=asked.any_version,
        timing_cache=timing_cache,
    )
    layers = compiled(engine)
    (folder / ENGINE).write_bytes(engine.blob)
    (folder / LOG).write_text(engine.log, encoding="utf-8")
    if engine.timing_cache is not None:
        (folder / TIMINGS).write_bytes(engine.timing_cache)
    (folder / PLAN).write_text(plan_text(layers), encoding="utf-8")
    executed = precision_by_node(layers)
    attention = attention_by_operator(layers, manifest.attention_operators)
    smallest, optimal, largest = asked.batch
    record = EngineRecord(
        package=engine.package,
        version=engine.version,
        graph_sha256=graph_sha256(graph),
        bundle_sha256=None if manifest.origin is None else manifest.origin.bundle_sha256,
        engine_sha256=hashlib.sha256(engine.blob).hexdigest(),
        gpu=gpu,
        compute_capabilities=tuple(engine.compute_capabilities),
        batch=Batch(smallest=smallest, optimal=optimal, largest=largest),
        workspace_mib=asked.workspace,
        flags=engine.flags,
        bytes=len(engine.blob),
        build_s=engine.seconds,
        plan=summarize(layers),
        precision={site.path: executed.get(site.path, "absent") for site in manifest.sites},
        attention=attention,
        unfused=tuple(unfused(manifest, attention)),
        problems=tuple(claims_broken(manifest, layers, executed, attention)),
    )
    (folder / RECORD).write_bytes(encode(record))
    return record


def claims_broken(
    manifest: GraphManifest, layers: Sequence[PlanLayer], executed: Mapping[str, str], attention: Mapping[str, str]
) -> list[str]:
    """What the compiled plan runs differently from what the graph's manifest claims; empty when it keeps its word.

    Products of an attention that is not fused are GEMMs of their own: they are told block by block, not counted again.
    One that is claimed floating-point breaks no word where it is not fused: `unfused` tells of it.
    """
    problems = [
        f"{path} is claimed integer and runs in {executed.get(path, 'no layer of the plan')}"
        for path in by_path(manifest.sites)  # one that is called on several levels is told once
        if executed.get(path) != "int8"
    ]
    claims, summary, operators = manifest.claims, summarize(layers), manifest.attention_operators
    apart = products_apart(layers, operators)
    merged = products_merged(layers, {site.gemm for site in manifest.sites})
    for kind, word in WORDS.items():
        as_gemm = summary.conv.get(kind, 0) if kind == "int8" else 0  # a layer may be compiled as a convolution
        found, claimed = summary.gemm.get(kind, 0) + as_gemm + merged[kind] - apart[kind], claims.gemm.get(kind, 0)
        if found != claimed:
            problems.append(f"the graph claims {claimed} {word} GEMMs, the plan has {found}")
    problems += [
        f"{operator.path} is claimed as fused {WORDS[operator.precision]} attention and runs {_run(attention, operator)}"
        for operator in operators
        if operator.precision == "int8" and attention.get(operator.path) != "int8"
    ]
    for kind, word in WORDS.items():
        found, fused = (
            summary.attention.get(kind, 0),
            sum(attention.get(operator.path) == kind for operator in operators),
        )
        if found != fused:
            problems.append(f"the plan has {found} fused {word} attentions, {fused} are the graph's own")
    return problems


def unfused(manifest: GraphManifest, attention: Mapping[str, str]) -> list[str]:
    """The floating-point attentions that no fused kernel computes, and what the plan runs instead."""
    return [
        f"{operator.path}: {_run(attention, operator)}"
        for operator in manifest.attention_operators
        if operator.precision != "int8" and attention.get(operator.path) not in FLOATING
    ]


def _run(attention: Mapping[str, str], operator: AttentionOperator) -> str:
    """What a block's attention runs, as it reads behind "runs"."""
    found = attention.get(operator.path, "in no layer of the plan")
    words = {str(kind): word for kind, word in WORDS.items()}
    return f"as fused {words[found]} attention" if found in words else found
