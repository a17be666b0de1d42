"""Things that take pixels and return logits: a model in PyTorch, a graph in ONNX Runtime.

Letters:  B images of 3 × H × W pixels;  n classes
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from erq_export.backends.onnxruntime import CPU, run_one, session
from erq_export.contract.errors import DataError, OutputError


class Runner(Protocol):
    """What accuracy, parity and latency measure."""

    @property
    def name(self) -> str: ...

    def logits(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) float32 on the CPU → (B, n) float32 on the CPU. Returns when the result is there."""
        ...


class TorchRunner:
    """A model in PyTorch. The model is moved to `device` and put in evaluation mode."""

    def __init__(self, model: nn.Module, device: torch.device, *, name: str = "torch") -> None:
        self.name, self.device, self.model = name, device, model.to(device).eval()

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.model(pixels.to(self.device))
        return out.float().cpu()


class OnnxRuntimeRunner:
    """A graph with one input and one output in ONNX Runtime.

    threads: of one operator (None: ONNX Runtime's choice, all cores);  optimize: False runs the graph as written, in
    float. OutputError without the file, DataError where ONNX Runtime refuses it, MachineError without package or provider.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        optimize: bool = True,
        providers: Sequence[str] = CPU,
        name: str = "onnxruntime",
    ) -> None:
        if not path.is_file():
            raise OutputError(f"there is no graph {path}", fix="erq-export MODEL --to onnx --out DIR writes one")
        self.name = name
        self.session = session(path, threads=threads, optimize=optimize, providers=providers)
        if (sides := (len(self.session.get_inputs()), len(self.session.get_outputs()))) != (1, 1):
            raise DataError(f"{path} has {sides[0]} inputs and {sides[1]} outputs, not one of each", fix="export again")

    def logits(self, pixels: Tensor) -> Tensor:
        return run_one(self.session, pixels.float())
