"""Things that take pixels and return logits: a model in PyTorch, a graph in ONNX Runtime.

Letters:  B images of 3 × H × W pixels;  n classes
A detector's part is one too: B pictures or boxes of C × H × W values, and n of whatever it gives for each.
"""

import shutil
from collections.abc import Callable, Sequence
from os import environ
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from erq_export.backends.onnxruntime import CPU, DEVICE_OF, bound, input_device, run_all, session, sides
from erq_export.contract.errors import DataError, MachineError, OutputError


class Runner(Protocol):
    """What accuracy, parity and latency measure."""

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def logits(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) float32 on the CPU → (B, n) float32 on the CPU. Returns when the result is there."""
        ...

    def prepared(self, pixels: Tensor) -> Callable[[], None]:
        """A call that runs once on `pixels`, which already lie on the device, into a buffer there: nothing is copied from or
        to the host, and on a GPU the work is enqueued on torch's current stream, not waited for."""
        ...

    def synchronize(self) -> None:
        """Wait for what was enqueued; on the CPU nothing is."""
        ...


def joined(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    """(B, n) several outputs of B rows side by side; an only one as it is."""
    if isinstance(outputs, Tensor) or len(outputs) == 1:
        return outputs if isinstance(outputs, Tensor) else outputs[0]
    return torch.cat([y.flatten(1) for y in outputs], 1)


class TorchRunner:
    """A model in PyTorch. The model is moved to `device` and put in evaluation mode.

    threads: set for the whole process whenever it runs (None: as they are).
    """

    def __init__(
        self, model: nn.Module, device: torch.device, *, name: str = "torch", threads: int | None = None
    ) -> None:
        self.name, self.device, self.model = name, device, model.to(device).eval()
        self.threads = threads

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        self._take_threads()
        return joined(self.model(pixels.to(self.device))).float().cpu()

    def prepared(self, pixels: Tensor) -> Callable[[], None]:
        x = pixels.to(self.device)  # (B, 3, H, W)

        @torch.inference_mode()
        def run() -> None:
            self._take_threads()
            self.model(x)

        return run

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _take_threads(self) -> None:
        if self.threads is not None and self.threads != torch.get_num_threads():
            torch.set_num_threads(self.threads)


def compiled(model: nn.Module, device: torch.device, *, name: str, threads: int | None = None) -> TorchRunner:
    """The same after torch.compile, which compiles when the first batch of a size comes. MachineError without a compiler."""
    if device.type == "cpu" and not any(map(shutil.which, (environ.get("CXX", "g++"), "clang++"))):
        raise MachineError("torch.compile needs a C++ compiler", fix="install g++, or leave --with torch-compile out")
    runner = TorchRunner(model, device, name=name, threads=threads)
    torch.compiler.reset()  # it compiles one piece of code a few times only, whatever for, and then runs it eagerly
    runner.model = torch.compile(runner.model, dynamic=False)  # type: ignore[assignment]
    return runner


class OnnxRuntimeRunner:
    """A graph with one input in ONNX Runtime.

    threads: of one operator (None: ONNX Runtime's choice, all cores);  optimize: False runs the graph as written, in
    float;  n_outputs: that it must have. OutputError without the file, DataError where ONNX Runtime refuses it, MachineError
    without package or provider.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        optimize: bool = True,
        providers: Sequence[str] = CPU,
        name: str = "onnxruntime",
        n_outputs: int = 1,
    ) -> None:
        if not path.is_file():
            raise OutputError(f"there is no graph {path}", fix="erq-export MODEL --to onnx --out DIR writes one")
        self.name, self.device = name, torch.device(DEVICE_OF.get(providers[0], "cpu"))
        self.session = session(path, threads=threads, optimize=optimize, providers=providers)
        if (n := sides(self.session)) != (1, n_outputs):
            wanted = "one of each" if n_outputs == 1 else f"1 and {n_outputs}"
            raise DataError(f"{path} has {n[0]} inputs and {n[1]} outputs, not {wanted}", fix="export again")

    def logits(self, pixels: Tensor) -> Tensor:
        return joined(run_all(self.session, pixels.float()))

    def prepared(self, pixels: Tensor) -> Callable[[], None]:
        return bound(self.session, pixels.float(), input_device(self.device))

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
