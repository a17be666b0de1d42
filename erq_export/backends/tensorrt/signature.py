"""What goes into an engine and what comes out, as the engine itself says."""

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from erq_export.contract.errors import EngineError

from .package import shape

if TYPE_CHECKING:
    import tensorrt as api

_DTYPES = {
    **{"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT64": torch.int64},
    **{"INT32": torch.int32, "INT8": torch.int8, "UINT8": torch.uint8, "BOOL": torch.bool},
}


@dataclass(frozen=True, kw_only=True)
class Slot:
    """An input or output: its name, type, and shape; a dim of -1 is the batch."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    def empty(self, batch: int, device: torch.device) -> Tensor:
        """Room for a batch."""
        return torch.empty([batch if dim == -1 else dim for dim in self.shape], dtype=self.dtype, device=device)


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Inputs, outputs, and the (smallest, largest) batch that the engine takes."""

    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    batch: tuple[int, int]

    @classmethod
    def of(cls, trt: ModuleType, engine: "api.ICudaEngine") -> "Signature":
        """EngineError for a type that torch does not have."""
        inputs: list[Slot] = []
        outputs: list[Slot] = []
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            dtype = engine.get_tensor_dtype(name).name
            if dtype not in _DTYPES:
                raise EngineError(
                    f"{name} is of type {dtype}, which torch has not", fix="a graph of float inputs and outputs"
                )
            slot = Slot(name=name, dtype=_DTYPES[dtype], shape=shape(engine.get_tensor_shape(name)))
            (inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs).append(slot)
        return cls(inputs=tuple(inputs), outputs=tuple(outputs), batch=_batch(engine, inputs[0]))

    def check(self, batch: int) -> None:
        """EngineError beyond the sizes that the engine takes."""
        smallest, largest = self.batch
        if not smallest <= batch <= largest:
            raise EngineError(
                f"a batch of {batch}: the engine takes {smallest} to {largest}",
                fix=f"erq-export build OUT --batch {min(batch, smallest)},{min(8, max(batch, largest))},{max(batch, largest)}",
            )


def _batch(engine: "api.ICudaEngine", first: Slot) -> tuple[int, int]:
    """Of the profile where the first dim is dynamic, else the one there is."""
    if first.shape[0] != -1:
        return first.shape[0], first.shape[0]
    smallest, _, largest = engine.get_tensor_profile_shape(first.name, 0)
    return shape(smallest)[0], shape(largest)[0]
