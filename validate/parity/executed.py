"""What ONNX Runtime really runs: the operators of its optimized graph."""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from erq_export.backends.onnxruntime import session
from erq_export.contract.manifest import AttentionOperator, GraphManifest, LoweredSite, by_path
from erq_export.contract.parity import INTEGER_GEMMS

FLOAT_GEMMS = frozenset({"MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulNBits", "Conv", "FusedConv"})
GEMMS = INTEGER_GEMMS | FLOAT_GEMMS
UNKNOWN = "unknown"


def optimized_session(model: Path | bytes) -> tuple[Any, list[Any]]:
    """(session on the CPU, nodes of the graph that it runs)."""
    with tempfile.TemporaryDirectory(prefix="erq-export-") as folder:
        copy = Path(folder) / "optimized.onnx"
        made = session(model, optimized_copy=copy)
        return made, list(onnx.load(copy, load_external_data=False).graph.node)


def executed_ops(path: Path) -> dict[str, int]:
    """How many operators of each kind ONNX Runtime runs for this file on the CPU, most frequent first."""
    return count_ops(optimized_session(path)[1])


def count_ops(nodes: Sequence[Any]) -> dict[str, int]:
    return dict(Counter(node.op_type for node in nodes).most_common())


def float_matmuls_among_sites(path: Path, manifest: GraphManifest) -> list[str]:
    """The layers that the manifest claims to be integer and that ONNX Runtime does not multiply in integers."""
    executed = gemm_by_layer(optimized_session(path)[1], by_path(manifest.sites))
    return [name for name, op in executed.items() if op not in INTEGER_GEMMS]


def products_by_attention(nodes: Sequence[Any], operators: Sequence[AttentionOperator]) -> dict[str, str]:
    """The operators of q kᵀ and of P v, joined by "+", for every attention operator by its path."""
    named = {node.name: node.op_type for node in nodes if node.op_type in GEMMS}
    return {o.path: f"{named.get(o.scores, UNKNOWN)}+{named.get(o.context, UNKNOWN)}" for o in operators}


def gemm_by_layer(nodes: Sequence[Any], claimed: Mapping[str, LoweredSite]) -> dict[str, str]:
    """The operator that multiplies each claimed layer: the one of its name, or the one that reads its weight."""
    gemms = [node for node in nodes if node.op_type in GEMMS]
    named = {key: node.op_type for node in gemms for key in (*node.input, node.name)}
    return {path: named.get(claim.gemm, named.get(claim.weight, UNKNOWN)) for path, claim in claimed.items()}
