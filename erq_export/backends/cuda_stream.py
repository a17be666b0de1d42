"""A CUDA stream of torch's, as an engine needs it: its handle, its end, and calls captured on it."""

from collections.abc import Callable
from typing import Protocol

import torch


class Stream(Protocol):
    """Where an engine is enqueued."""

    @property
    def handle(self) -> int: ...

    def wait_for_current(self) -> None:
        """What torch has enqueued so far comes before whatever is enqueued here from now on."""
        ...

    def lead_current(self) -> None:
        """What is enqueued here comes before whatever torch enqueues from now on."""
        ...

    def synchronize(self) -> None:
        """Return when all that was enqueued is done."""
        ...

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        """What `call` enqueues, as one CUDA graph; RuntimeError where it cannot be captured."""
        ...


class CudaStream:
    """One of its own: on the default stream TensorRT synchronises the whole device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    @property
    def handle(self) -> int:
        return int(self.stream.cuda_stream)

    def wait_for_current(self) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def lead_current(self) -> None:
        torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def synchronize(self) -> None:
        self.stream.synchronize()

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph, stream=self.stream):
            call()

        def replay() -> None:
            with torch.cuda.stream(self.stream):
                graph.replay()

        return replay
