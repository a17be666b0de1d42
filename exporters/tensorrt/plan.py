"""What a TensorRT builder says it compiled: its VERBOSE log, read as layers with precisions and source nodes.

Measured on tensorrt_rtx 1.7.1 (TensorRT 10 writes `Format/Datatype:` and has no `Constants:`); a layer is one line:

    Name: blocks.0.attn.qkv/MatMul_myl0_2, LayerType: gemm, Inputs: [ { Name: …, Dimensions: [-1,128], …,
    Datatype: Int8, … }], Constants: […], Outputs: […], TacticName: …, StreamId: 0,
    Metadata: [ONNX Layer: blocks.0.attn.qkv/MatMul]␟[ONNX Layer: blocks.0.attn.qkv/Dequantize]

* The plan is one message that starts with `Layers:`; an engine for several compute capabilities prints one plan.
* Names get mangled (`__mye25929+__mye25917_myl0_4`); `Metadata` keeps the ONNX node names, so attribution uses it.
* Epilogue, padding and weight kernels also carry a MatMul's name in `Metadata`: only the layer that multiplies counts.
* A GEMM's tactic on RTX is a stub, its kernel is chosen on the GPU: operand types are what the plan can prove.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from erq_export.backends.tensorrt import Engine
from erq_export.contract.engine import PlanSummary
from erq_export.contract.manifest import WORDS, AttentionOperator
from erq_export.contract.manifest import Arithmetic as Precision

Tensor: TypeAlias = tuple[str, tuple[int, ...]]  # (dtype, dims); a dim of -1 is dynamic
Role: TypeAlias = Literal["gemm", "conv", "attention", "kernel", "none"]

_DTYPES = {
    **{"BFloat16": "bf16", "BF16": "bf16", "Float": "f32", "FP32": "f32", "Half": "f16", "FP16": "f16"},
    **{"Int8": "i8", "INT8": "i8", "UInt8": "u8", "Int4": "i4", "FP8": "fp8", "FP4": "fp4"},
    **{"Int32": "i32", "Int64": "i64", "Bool": "bool"},
}
_FLOATS: dict[str, Precision] = {  # widest first
    "f32": "float32",
    "bf16": "bfloat16",
    "f16": "float16",
    "fp8": "float8",
    "fp4": "float4",
}
_DTYPE = re.compile("|".join(sorted(_DTYPES, key=len, reverse=True)))
_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), (?P<rest>.*)$", re.MULTILINE)
_TENSOR = re.compile(r"Dimensions: \[([^\]]*)\].*?(?:Format/)?Datatype: ([^,}]*)")
_TACTIC = re.compile(r"\bTacticName: ([^,]*),")
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f]?\[|\s*$)")  # the entries are joined by an ASCII separator
_ATTENTION = re.compile(r"_gem[mv]_mha_v\d")  # in the layer name; "mha" alone may be part of a module path
_DEQUANTIZED_FC = re.compile(r"Cast\w*Fc")  # a fusion that widens its integers and then multiplies in floating point
_MULTIPLIER = re.compile(r"(?P<path>.+)/(?:MatMul|Gemm|Conv)")
_MANGLED = re.compile(r"__mye\d+|^__myl_|_myl\d+_\d+$")

_NOT_KERNELS = frozenset({"signal", "wait", "shape_call"})
_GEMMS = frozenset({"gemm", "cublas", "runtime_fusion", "fusion"})


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanLayer:
    """One compiled layer. `nodes` are the ONNX nodes it was made of; `constants` are weights and other literals."""

    name: str
    kind: str
    tactic: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[str, ...]

    @property
    def role(self) -> Role:
        kind = self.kind.lower()
        if kind in _NOT_KERNELS:
            return "none"
        if _ATTENTION.search(self.name):
            return "attention"
        if kind in _GEMMS or "gemm" in kind:
            return "gemm"
        return "conv" if kind == "correlation" or "conv" in kind else "kernel"

    @property
    def precision(self) -> Precision | None:
        """The arithmetic of a multiplying layer, None for any other: integer only where every operand is."""
        if self.role in ("none", "kernel"):
            return None
        if self.role == "attention":  # q, k and v; a bias or mask beside them stays floating
            integer = sum(dtype == "i8" for dtype, _ in self.inputs) >= 3
            return "int8" if integer else self._floating(self.inputs)
        operands = {*self.inputs[:1], *_matrices(self.inputs), *_matrices(self.constants)}
        integer = {dtype for dtype, _ in operands} == {"i8"}
        return "int8" if integer and not _DEQUANTIZED_FC.search(self.name) else self._floating(tuple(operands))

    def _floating(self, operands: Sequence[Tensor]) -> Precision:
        """The format of most floating operands, the widest on ties; of the output where all are integers, widened first."""
        for tensors in (operands, self.outputs):
            n = Counter(_FLOATS[dtype] for dtype, _ in tensors if dtype in _FLOATS)
            if n:
                return max(_FLOATS.values(), key=lambda kind: n[kind])
        return "float32"


def parse_plan(log: str) -> tuple[PlanLayer, ...]:
    """The layers of the last plan in a VERBOSE log, in execution order; empty when the log holds none."""
    start = log.rfind("Layers:\n")
    return () if start < 0 else tuple(_layer(match) for match in _LAYER.finditer(log, start))


def compiled(engine: Engine) -> tuple[PlanLayer, ...]:
    """The layers of the plan that the builder logged; empty where it logged none."""
    return parse_plan("\n".join(message for _, message in engine.records))


def summarize(layers: Iterable[PlanLayer]) -> PlanSummary:
    n: Counter[tuple[Role, Precision | None]] = Counter(
        (layer.role, layer.precision) for layer in layers if layer.role != "none"
    )
    return PlanSummary(
        gemm=by_format(n, "gemm"),
        conv=by_format(n, "conv"),
        attention=by_format(n, "attention"),
        kernels=n["kernel", None],
        layers=n.total(),
    )


def by_format(n: Counter[tuple[Role, Precision | None]], role: Role) -> dict[Precision, int]:
    """The counts of one role, in the formats' own order."""
    return {kind: n[role, kind] for kind in WORDS if n[role, kind]}


def precision_by_node(layers: Iterable[PlanLayer]) -> dict[str, Precision]:
    """Module path -> precision, for every ONNX node named `<path>/MatMul`, `<path>/Gemm` or `<path>/Conv`.

    Integer is claimed only where each layer that multiplies for the node is integer. A node that is only seen in layers
    not known to multiply counts as floating point; one that the plan does not mention is absent.
    """
    found: dict[str, set[Precision]] = {}
    for layer in layers:
        for node in layer.nodes:
            if match := _MULTIPLIER.fullmatch(node):
                found.setdefault(match["path"], set()).update({layer.precision} if layer.precision else ())
    return {path: _one_of(seen) for path, seen in found.items()}


def _one_of(seen: set[Precision]) -> Precision:
    """The format of a node that several layers multiply for: the widest; float32 where none is known to."""
    return next((kind for kind in (*_FLOATS.values(), *WORDS) if kind in seen), "float32")


def attention_by_operator(layers: Sequence[PlanLayer], operators: Iterable[AttentionOperator]) -> dict[str, str]:
    """Module path -> the format where a fused kernel computes the attention, else what the plan runs instead.

    A fused kernel carries its operator's nodes in `Metadata`; the same kernel never serves two operators.
    """
    return {operator.path: _attention(layers, operator) for operator in operators}


def _attention(layers: Sequence[PlanLayer], operator: AttentionOperator) -> str:
    nodes = {operator.scores, operator.softmax, operator.context}
    mine = [layer for layer in layers if nodes & set(layer.nodes)]
    fused = {layer.precision for layer in mine if layer.role == "attention"}
    if len(fused) == 1:
        return str(fused.pop())
    n = Counter(layer.precision for layer in mine if layer.role == "gemm")
    parts = [f"{n[kind]} {word} GEMMs" for kind, word in WORDS.items() if n[kind]]
    others = sum(layer.role == "kernel" for layer in mine)
    return f"not fused: {', '.join(parts) or 'no GEMM of its own'} and {others} other kernels"


def products_apart(layers: Iterable[PlanLayer], operators: Iterable[AttentionOperator]) -> Counter[Precision | None]:
    """How many GEMMs of each precision are attention's own products, left outside a fused kernel."""
    nodes = {node for operator in operators for node in (operator.scores, operator.context)}
    return Counter(layer.precision for layer in layers if layer.role == "gemm" and nodes & set(layer.nodes))


def products_merged(layers: Iterable[PlanLayer], products: Collection[str]) -> Counter[Precision | None]:
    """How many of these nodes have no GEMM of their own, by precision: products of one input that one GEMM computes side by side.

    A node that two multiplying layers carry is no proof of it.
    """
    carried = [
        (layer.precision, set(products) & set(layer.nodes)) for layer in layers if layer.role in ("gemm", "conv")
    ]
    times = Counter(node for _, nodes in carried for node in nodes)
    merged: Counter[Precision | None] = Counter()
    for precision, nodes in carried:
        merged[precision] += max(0, sum(times[node] == 1 for node in nodes) - 1)
    return merged


def plan_text(layers: Iterable[PlanLayer]) -> str:
    """The plan with one line per kernel, free of the builder's serial numbers: made to be saved and compared."""
    return "".join(_line(layer) + "\n" for layer in layers if layer.role != "none")


def _line(layer: PlanLayer) -> str:
    sources = sorted(node for node in layer.nodes if _MULTIPLIER.fullmatch(node))
    label = "+".join(sources) if layer.role in ("gemm", "conv") and sources else _MANGLED.sub("", layer.name)
    reads, writes = _tensors(layer.inputs + _matrices(layer.constants)), _tensors(layer.outputs)
    mark = layer.precision if layer.precision in (None, "int8") else "fp"  # the types behind it say which
    return f"{mark or '-':<5}{layer.kind:<15}{label}: {reads} -> {writes}"


def _tensors(tensors: Iterable[Tensor]) -> str:
    return " ".join(f"{dtype}[{','.join(map(str, dims))}]" for dtype, dims in tensors)


def _matrices(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Those with at least two dims that are not 1: activations and weights, not biases, scales, alpha or beta."""
    return tuple(tensor for tensor in tensors if sum(dim != 1 for dim in tensor[1]) >= 2)


def _layer(match: re.Match[str]) -> PlanLayer:
    rest = match["rest"]
    body, _, metadata = rest.partition("Metadata: ")
    tactic = _TACTIC.search(body)
    return PlanLayer(
        name=match["name"],
        kind=match["kind"],
        tactic=tactic[1] if tactic else "",
        inputs=_section(body, "Inputs"),
        constants=_section(body, "Constants"),
        outputs=_section(body, "Outputs"),
        nodes=tuple(dict.fromkeys(_NODE.findall(metadata))),
    )


def _section(body: str, key: str) -> tuple[Tensor, ...]:
    match = re.search(rf"\b{key}: \[( \{{.*?\}} ?)?\]", body)
    found = _TENSOR.findall(match[1] or "") if match else []
    return tuple((_dtype(text), tuple(int(dim) for dim in dims.split(",") if dim)) for dims, text in found)


def _dtype(text: str) -> str:
    match = _DTYPE.search(text)
    return _DTYPES[match[0]] if match else text.strip()
