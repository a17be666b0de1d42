"""ONNX Runtime's own quantize_static with the settings that make sense for a transformer on a CPU, to compare with.

Its activations are uint8 and its weights int8 throughout: int8 activations are slower on x64, where ONNX Runtime turns
them back to uint8. `reduce_range` changes weights, not kernels, and is left out: speed alone is asked here.
"""

import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from erq_export.backends.machine import versions
from erq_export.data.calibration_set import CalibrationSet
from erq_export.flow.artifacts import Artifact
from erq_export.flow.store.entry import Work
from erq_export.flow.store.key import code_hash, key
from erq_export.flow.store.store import Store

SETTINGS: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def float_attention(setting: str) -> bool:
    """Whether the products of attention, q kᵀ and softmax · v, stay in float32."""
    return "nodes_to_exclude" in SETTINGS[setting]


class Images(CalibrationDataReader):  # type: ignore[misc]
    """Hands out the images of a tensor (n, 3, H, W) one by one."""

    def __init__(self, pixels: Tensor) -> None:
        self.left = iter(pixels.numpy())

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.left, None)
        return None if image is None else {"pixels": image[None]}


def attention_products(graph: Path) -> list[str]:
    """The MatMul nodes whose second input is no constant."""
    model = onnx.load(str(graph), load_external_data=False).graph
    constants = {tensor.name for tensor in model.initializer}
    return [node.name for node in model.node if node.op_type == "MatMul" and node.input[1] not in constants]


def graphs(float_graph: Artifact, data: CalibrationSet, store: Store) -> dict[str, Path]:
    """Every setting's graph by its name, kept."""
    inputs = {"graph": float_graph.content, "images": data.sha256, **versions("onnxruntime-gpu")}

    def make(setting: str, work: Work) -> None:
        prepared, words = work.folder / "prepared.onnx", dict(SETTINGS[setting])
        quant_pre_process(str(float_graph.folder / "model.onnx"), str(prepared))
        if float_attention(setting):
            words["nodes_to_exclude"] = attention_products(prepared)
        words["quant_format"] = QuantFormat[words.get("quant_format", "QDQ")]
        types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(
            str(prepared),
            str(work.folder / "model.onnx"),
            Images(data.pixels),
            **types,
            **{"per_channel": True} | words,
        )
        prepared.unlink()

    found = {}
    for name in SETTINGS:
        its_key = key("graph", inputs, {"quantize_static": name}, code_hash(__name__))
        entry = store.fetch("graph", its_key, partial(make, name), description=f"quantize_static: {name}")
        found[name] = entry.folder / "model.onnx"
    return found
