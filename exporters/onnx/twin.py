"""The FP16 twin: the float model as the graph that an engine's speed is compared with, typed like the quantized one.

LayerNorm computes in float32 and all else in float16, as beside the integers (`half`): what differs is the products alone.
Against a twin in float32, or one that the builder may type as it likes, INT8 would be compared with something else.
"""

from collections import Counter

import onnx_ir as ir
from torch import nn

from erq_export.contract.manifest import Claims, GraphManifest, Sizes
from erq_export.contract.targets import Target

from .attention import attention_operators
from .graph import Editor, name_by_module
from .half import to_half
from .sizes import tensor_bytes
from .trace import trace

PRODUCTS = ("MatMul", "Gemm", "Conv")


def half_graph(model: nn.Module, input_size: tuple[int, int, int], target: Target) -> tuple[ir.Model, GraphManifest]:
    """(graph, manifest) of a float model for a target with a float16 carrier; nothing is quantized, nothing comes of a bundle."""
    graph = trace(model, input_size)
    name_by_module(graph)
    exact = tensor_bytes(graph)
    to_half(graph)
    Editor(graph).finish()
    graph.producer_name, graph.producer_version = "erq-export", None
    attention = attention_operators(graph, "float16")
    inside = {name for operator in attention for name in (operator.scores, operator.context)}
    products = [node for node in graph.graph if node.op_type in PRODUCTS and node.name not in inside]
    written = tensor_bytes(graph)
    manifest = GraphManifest(
        target=target.name,
        opset=graph.opset_imports[""],
        claims=Claims(
            gemm={"float16": len(products)}, attention=dict(Counter(operator.precision for operator in attention))
        ),
        bytes=Sizes(float32=exact, int8=written, int4=written, written=written),
        sites=(),
        attention_operators=tuple(attention),
    )
    return graph, manifest
