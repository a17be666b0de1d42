"""torch's CUDA streams, as an engine needs them: a handle to enqueue on, in order with torch's own work, and captured calls."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch


class Stream(Protocol):
    """Where an engine is enqueued."""

    def turn(self) -> AbstractContextManager[int]:
        """The handle to enqueue on, behind all that torch has enqueued so far and before what it will enqueue."""
        ...

    def synchronize(self) -> None:
        """Return when all that was enqueued is done."""
        ...

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        """What `call` enqueues, as one CUDA graph; RuntimeError where it cannot be captured."""
        ...


class CudaStream:
    """torch's current stream; where that is the default one, on which TensorRT synchronises the whole device, one beside it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.beside = torch.cuda.Stream(device)

    @contextmanager
    def turn(self) -> Iterator[int]:
        current = torch.cuda.current_stream(self.device)
        if current != torch.cuda.default_stream(self.device):
            yield int(current.cuda_stream)
            return
        self.beside.wait_stream(current)
        try:
            yield int(self.beside.cuda_stream)
        finally:
            current.wait_stream(self.beside)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph, stream=self.beside):
            call()
        return graph.replay
