"""A graph in OpenVINO on the CPU: what else could run the graph of the target `onnx`."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from erq_export.backends.openvino import compiled, products
from erq_export.contract.errors import DataError

from .runners import joined


class OpenVinoRunner:
    """A graph with one input. MachineError without the package, DataError where OpenVINO refuses the graph."""

    def __init__(self, path: Path, *, threads: int | None = None, name: str = "openvino", n_outputs: int = 1) -> None:
        self.name, self.device = name, torch.device("cpu")
        self.model = compiled(path, threads=threads)
        if (n := len(self.model.outputs)) != n_outputs:
            raise DataError(f"{path} has {n} outputs, not {n_outputs}", fix="export again")
        self.products = products(self.model)
        self._request = self.model.create_infer_request()

    def logits(self, pixels: Tensor) -> Tensor:
        self._feed(pixels)
        self._request.infer()
        return joined([torch.from_numpy(y.data.copy()) for y in self._request.output_tensors])

    def prepared(self, pixels: Tensor) -> Callable[[], None]:
        self._feed(pixels)
        request = self._request

        def run() -> None:
            request.infer()

        return run

    def synchronize(self) -> None:
        """Nothing is enqueued."""

    def _feed(self, pixels: Tensor) -> None:
        """The request's input is the memory of `pixels` itself: no copy."""
        from erq_export.backends.openvino import openvino

        array = pixels.float().contiguous().numpy()
        try:
            self._request.set_input_tensor(openvino().Tensor(array, shared_memory=True))
        except RuntimeError as e:
            raise DataError(
                f"the graph does not take a batch of shape {tuple(pixels.shape)}", fix="another graph"
            ) from e
