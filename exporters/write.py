"""From a bundle to ONNX files: one trace, one lowering per target, checked, saved with a manifest of what it claims."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from torch import nn

from erq_export.bundle import Bundle
from erq_export.quantized import MARKER
from erq_export.targets import Target

from .graph import Editor, name_by_module
from .half import to_half
from .qdq import lower
from .trace import trace

LARGEST_FILE = 1_900_000_000  # bytes; protobuf ends at 2 GiB, larger tensors go beside the file
MANIFEST_FORMAT = 1


def marker_graph(bundle: Bundle) -> ir.Model:
    """The one trace that every target's graph is lowered from."""
    model = trace(bundle.reference(), bundle.identity.preprocess.input_size)
    name_by_module(model)
    return model


def rebound(markers: ir.Model, bundle: Bundle) -> ir.Model | None:
    """The marker graph of another bundle of the same architecture, without tracing again; the given one stays as it is.

    None where the trace merged equal constants, so that a tensor of the bundle has no place of its own.
    """
    model = markers.clone()
    constants = model.graph.initializers
    if any(name not in constants for name in bundle.leftovers):
        return None
    for name, tensor in bundle.leftovers.items():
        constants[name].const_value = ir.tensor(tensor.numpy(), name=name)
    editor = Editor(model)
    for node in [n for n in model.graph if n.op_type == MARKER]:
        path = node.metadata_props["erq.path"]
        layer = bundle.layers[path]
        for i, (name, tensor) in enumerate(
            (
                ("weight_q", layer.weight_q),
                ("weight_scale", layer.weight_scale),
                ("bias", layer.bias),
                ("act_scale", layer.act.scale),
            ),
            start=1,
        ):
            node.replace_input_with(i, editor.constant(f"rebound.{path}.{name}", tensor.numpy()))
        for name, value in (
            ("qmin", int(layer.act.qmin)),
            ("qmax", int(layer.act.qmax)),
            ("w_bits", layer.w_bits),
            ("a_bits", layer.a_bits),
        ):
            node.attributes[name] = ir.AttrInt64(name, value)
    editor.drop_unused()
    return model


def lowered(markers: ir.Model, target: Target, description: Mapping[str, Any]) -> tuple[ir.Model, dict[str, Any]]:
    """(graph, manifest) for a target; the marker graph stays as it is."""
    model = markers.clone()
    if target.carrier == "float16":
        to_half(model)
    sites = lower(model, target)
    Editor(model).finish()
    model.producer_name, model.producer_version = "erq-export", None
    for key, value in description.items():
        model.metadata_props[f"erq.{key}"] = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    manifest = {
        "format": MANIFEST_FORMAT,
        "target": target.name,
        "opset": model.opset_imports[""],
        "sites": [site.to_json() for site in sites],
        "claims": {"int8_gemm": len(sites), "fp_gemm": 0, "attention": count_attention(model)},
        **description,
    }
    return model, manifest


def float_graph(model: nn.Module, input_size: tuple[int, int, int]) -> ir.Model:
    """The float model's graph, for baselines: same trace, nothing quantized."""
    graph = trace(model, input_size)
    name_by_module(graph)
    Editor(graph).finish()
    return graph


def count_attention(model: ir.Model) -> int:
    """Softmax nodes whose output feeds a product: one per attention operator."""
    return sum(
        any(use.node.op_type == "MatMul" for use in node.outputs[0].uses())
        for node in model.graph
        if node.op_type == "Softmax"
    )


def save(model: ir.Model, path: Path) -> None:
    """Write the graph and run onnx's full check on the file. Tensors above 2 GB in all go into `<name>.data` beside it."""
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if size > LARGEST_FILE:
        ir.save(model, path, external_data=f"{path.name}.data")
    else:
        ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)


def save_manifest(manifest: Mapping[str, Any], path: Path) -> None:
    """Sorted, so that equal graphs have equal manifests."""
    path.write_text(json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
