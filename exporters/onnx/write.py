"""From a bundle to ONNX files: one trace, one lowering per target, checked, saved with a manifest of what it claims."""

import json
from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
from torch import Tensor, nn

from erq_export.contract.bundle import Deployed
from erq_export.contract.manifest import Arithmetic, Claims, GraphManifest, Origin
from erq_export.contract.quantized import QuantizedLayer, QuantizedOperand
from erq_export.contract.records import plain_of
from erq_export.contract.spec import Pack
from erq_export.contract.targets import Target
from erq_export.models.rebuild import reference_model

from .attention import attention_operators
from .graph import Editor, marker_nodes, name_by_module, path_of
from .half import to_half
from .linear import lower
from .sizes import sizes, tensor_bytes
from .trace import trace

LARGEST_FILE = 1_900_000_000  # bytes; protobuf ends at 2 GiB, larger tensors go beside the file


def marker_graph(bundle: Deployed) -> ir.Model:
    """The one trace that every target's graph is lowered from."""
    model = trace(reference_model(bundle), bundle.identity.preprocess.input_size)
    name_by_module(model)
    return model


def rebound(markers: ir.Model, bundle: Deployed) -> ir.Model | None:
    """The marker graph of another bundle of the same architecture, without tracing again; the given one stays as it is.

    None where the trace merged equal constants, so that a tensor of the bundle has no place of its own, and where one
    of the two has quantized attention and the other has not.
    """
    if {path_of(node) for node in marker_nodes(markers)} != set(bundle.layers) | set(bundle.operands):
        return None
    model = markers.clone()
    constants = model.graph.initializers
    if any(name not in constants for name in bundle.leftovers):
        return None
    for name, tensor in bundle.leftovers.items():
        constants[name].const_value = ir.tensor(tensor.numpy(), name=name)
    editor = Editor(model)
    for node in marker_nodes(model):
        path = path_of(node)
        tensors, attributes = _bound(bundle.layers.get(path) or bundle.operands[path])
        for i, (name, tensor) in enumerate(tensors.items(), start=1):
            node.replace_input_with(i, editor.constant(f"rebound.{path}.{name}", tensor.numpy()))
        for name, value in attributes.items():
            node.attributes[name] = ir.AttrInt64(name, value)
    editor.drop_unused()
    return model


def _bound(part: QuantizedLayer | QuantizedOperand) -> tuple[dict[str, Tensor], dict[str, int]]:
    """What a marker holds of the bundle, as `quantized` writes it: its inputs behind the first, its attributes."""
    if isinstance(part, QuantizedOperand):
        grid, bits = part.grid, {"bits": part.bits}
        tensors = {"scale": grid.scale}
    else:
        grid, bits = part.act, {"w_bits": part.w_bits, "a_bits": part.a_bits}
        names = ("weight_q", "weight_scale", "bias")
        tensors = {name: getattr(part, name) for name in names} | {"act_scale": grid.scale}
    qmin, qmax = grid.codes
    return tensors, {"qmin": qmin, "qmax": qmax} | bits


def save_markers(model: ir.Model, path: Path) -> None:
    """Write a marker graph, tensors beside the file: it is read back by `ir.load`, no other tool knows its operators."""
    ir.save(model, path, external_data=f"{path.name}.data")


def lowered(
    markers: ir.Model, target: Target, origin: Origin | None, *, pack: Pack = "int8"
) -> tuple[ir.Model, GraphManifest]:
    """(graph, manifest) for a target, weights packed as asked; the marker graph stays as it is."""
    model = markers.clone()
    if target.carrier == "float16":
        to_half(model)
    sites, operands = lower(model, target, pack=pack)
    Editor(model).finish()
    attention = attention_operators(model, target.carrier)
    model.producer_name, model.producer_version = "erq-export", None
    for key, value in ({} if origin is None else plain_of(origin)).items():
        model.metadata_props[f"erq.{key}"] = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    gemm: dict[Arithmetic, int] = {"int8": len(sites)}
    if n := float_products(model):
        gemm[target.carrier] = n
    manifest = GraphManifest(
        target=target.name,
        opset=model.opset_imports[""],
        claims=Claims(
            gemm=gemm,
            attention=dict(Counter(operator.precision for operator in attention)),
        ),
        bytes=sizes(markers, model, {site.path: site.w_bits for site in sites}, target),
        origin=origin,
        sites=tuple(sites),
        operands=tuple(operands),
        attention_operators=tuple(attention),
    )
    return model, manifest


def float_products(model: ir.Model) -> int:
    """Products with constants that are not quantized: one where a rotated stream leaves the model and is turned back."""
    products = (node for node in model.graph if node.op_type in ("MatMul", "Gemm"))
    return sum(any(v is not None and v.is_initializer() for v in node.inputs[:2]) for node in products)


def float_graph(model: nn.Module, input_size: tuple[int, int, int]) -> ir.Model:
    """The float model's graph, for baselines: same trace, nothing quantized."""
    graph = trace(model, input_size)
    name_by_module(graph)
    Editor(graph).finish()
    return graph


def save(model: ir.Model, path: Path) -> None:
    """Write the graph and run onnx's full check on the file. Tensors above 2 GB in all go into `<name>.data` beside it."""
    if tensor_bytes(model) > LARGEST_FILE:
        ir.save(model, path, external_data=f"{path.name}.data")
    else:
        ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
