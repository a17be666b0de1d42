"""An engine as a runner: pixels in, logits out, in batches that the engine takes.

Letters:  B images of 3 × H × W pixels;  n classes.  Not yet run on a GPU.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from erq_export.backends.tensorrt.execute import LoadedEngine
from erq_export.contract.errors import EngineError

from .runners import joined


class EngineRunner:
    """An engine with one input. EngineError for another.

    n_outputs: that it must have;  graph: how the last prepared call is enqueued, "own graph", "CUDA graph" or
    "no CUDA graph: …"; empty before.
    """

    def __init__(self, engine: LoadedEngine, *, name: str = "engine", n_outputs: int = 1) -> None:
        sides = engine.signature.inputs, engine.signature.outputs
        if (n := tuple(map(len, sides))) != (1, n_outputs):
            wanted = "one of each" if n_outputs == 1 else f"1 and {n_outputs}"
            raise EngineError(f"the engine has {n[0]} inputs and {n[1]} outputs, not {wanted}", fix="export again")
        self.name, self.device, self.engine, self.graph = name, engine.device, engine, ""
        (self._input,), self._outputs = sides

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) float32 on the CPU → (B, n) float32 on the CPU: as many runs as the largest batch asks for."""
        return torch.cat([self._logits(chunk) for chunk in pixels.split(self.engine.signature.batch[1])])

    def prepared(self, pixels: Tensor) -> Callable[[], None]:
        """A call that enqueues one run, in order with torch's current stream, from and into buffers of its own."""
        call, self.graph = self.engine.captured({self._input.name: pixels})
        return call

    def synchronize(self) -> None:
        """Wait for what was enqueued."""
        self.engine.synchronize()

    def close(self) -> None:
        """Keep what the package compiled meanwhile."""
        self.engine.close()

    def _logits(self, pixels: Tensor) -> Tensor:
        """A batch below the smallest that the engine takes is filled up with its last image."""
        missing = max(0, self.engine.signature.batch[0] - len(pixels))
        filled = torch.cat([pixels, pixels[-1:].expand(missing, *pixels.shape[1:])]) if missing else pixels
        found = self.engine.run({self._input.name: filled.to(self.device)})
        return joined([found[output.name] for output in self._outputs])[: len(pixels)].float().cpu()
