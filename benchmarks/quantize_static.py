"""ONNX Runtime's own quantize_static with the settings that make sense for a transformer on a CPU, to compare with.

Its activations are uint8 and its weights int8 throughout: int8 activations are slower on x64, where ONNX Runtime turns
them back to uint8. `reduce_range` changes weights, not kernels, and is left out: speed alone is asked here.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

PRODUCTS = ["MatMul", "Gemm"]
FLOAT_OUTPUTS = {"OpTypesToExcludeOutputQuantization": PRODUCTS}  # MatMulIntegerToFloat in place of QLinearMatMul

WITHOUT_WEIGHTS = "the products of attention"  # their nodes are looked up; MatMulConstBOnly does nothing in Q/DQ

# Name of a setting: arguments of quantize_static. Q/DQ and per channel unless said otherwise; after quant_pre_process.
SETTINGS: dict[str, dict[str, Any]] = {
    "every operator": {},
    "every operator, per tensor": {"per_channel": False},
    "products": {"op_types_to_quantize": PRODUCTS},
    "products, per tensor": {"op_types_to_quantize": PRODUCTS, "per_channel": False},
    "products, symmetric activations": {
        "op_types_to_quantize": PRODUCTS,
        "extra_options": {"ActivationSymmetric": True},
    },
    "products, QOperator": {"op_types_to_quantize": PRODUCTS, "quant_format": QuantFormat.QOperator},
    "products and Softmax": {"op_types_to_quantize": [*PRODUCTS, "Softmax"]},
    "products with float outputs": {"op_types_to_quantize": PRODUCTS, "extra_options": FLOAT_OUTPUTS},
    "products with weights": {"op_types_to_quantize": PRODUCTS, "nodes_to_exclude": WITHOUT_WEIGHTS},
    "products with weights, float outputs": {
        "op_types_to_quantize": PRODUCTS,
        "nodes_to_exclude": WITHOUT_WEIGHTS,
        "extra_options": FLOAT_OUTPUTS,
    },
}


def float_attention(setting: str) -> bool:
    """Whether the products of attention, q kᵀ and softmax · v, stay in float32."""
    return SETTINGS[setting].get("nodes_to_exclude") == WITHOUT_WEIGHTS


class Images(CalibrationDataReader):  # type: ignore[misc]
    """Hands out the images of a tensor (n, 3, H, W) one by one."""

    def __init__(self, name: str, pixels: Tensor) -> None:
        self.name, self.left = name, iter(pixels.numpy())

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.left, None)
        return None if image is None else {self.name: image[None]}


def attention_products(graph: Path) -> list[str]:
    """The MatMul nodes whose second input is no constant."""
    model = onnx.load(str(graph), load_external_data=False).graph
    constants = {tensor.name for tensor in model.initializer}
    return [node.name for node in model.node if node.op_type == "MatMul" and node.input[1] not in constants]


def graphs(float_graph: Path, pixels: Tensor, folder: Path) -> Iterator[tuple[str, Path]]:
    """(setting, file) for every setting that works; a file that lies there already is not made again."""
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        for i, (name, words) in enumerate(SETTINGS.items()):
            path = folder / f"{float_graph.stem}.quantize_static.{i}.onnx"
            if not path.exists():
                if not prepared.exists():
                    quant_pre_process(str(float_graph), str(prepared))
                if words.get("nodes_to_exclude") == WITHOUT_WEIGHTS:
                    words = words | {"nodes_to_exclude": attention_products(prepared)}
                half = path.with_suffix(".partial")
                given = {"per_channel": True, "quant_format": QuantFormat.QDQ} | words
                types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
                quantize_static(str(prepared), str(half), Images("pixels", pixels), **types, **given)
                half.rename(path)
            yield name, path
