"""One trace of the quantized model: an ONNX graph in float32 with a marker operator where each quantized layer stands."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from erq_export.contract.errors import EngineError

from .graph import Editor, value_of

OPSET = 21  # the first with int4 Q/DQ; 23 would turn attention into one operator that no backend runs in integers
INPUT, OUTPUT = "pixels", "logits"


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs every decomposition it considers; its errors still surface as exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


def trace(
    model: nn.Module, input_size: tuple[int, int, int], *, takes: str = INPUT, gives: Sequence[str] = (OUTPUT,)
) -> ir.Model:
    """Export a (quantized or float) model with a dynamic batch: one input (B, C, H, W), as many outputs as are named.

    EngineError where torch cannot export it.
    """
    batch = ({0: torch.export.Dim("batch")},)
    return exported(model, (torch.zeros(2, *input_size),), takes=(takes,), gives=gives, dynamic_shapes=batch)


def exported(
    model: nn.Module,
    examples: tuple[Tensor, ...],
    *,
    takes: Sequence[str],
    gives: Sequence[str],
    dynamic_shapes: tuple[Mapping[int, Any], ...] | None = None,
) -> ir.Model:
    """Export a model with inputs and outputs by name, of the examples' shapes but where a dimension is named dynamic.

    EngineError where torch cannot export it.
    """
    with torch.no_grad(), _quiet():
        try:
            program = torch.onnx.export(
                model.cpu().eval(),
                examples,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=dynamic_shapes,
                input_names=list(takes),
                output_names=list(gives),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as e:
            raise EngineError(
                f"torch could not export the model: {e}", fix="report the model's timm name and arguments"
            ) from e
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    drop_empty_pads(program.model)
    return program.model


def drop_empty_pads(model: ir.Model) -> None:
    """Remove every Pad that adds nothing: windows that fit leave one a block, and ONNX Runtime copies for each."""
    editor = Editor(model)
    for node in [node for node in model.graph if node.op_type == "Pad"]:
        x, pads = node.inputs[:2]
        if x is not None and pads is not None and pads.is_initializer() and not value_of(pads).any():
            editor.replace(node, x)
