"""What passes from stage to stage: one tensor of several images, or of one image several tensors by name."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

State = Tensor | Mapping[str, Tensor]


def n_images(h: State) -> int:
    """A state of several tensors is that of one image: a detector's boxes are of no fixed number."""
    return len(h) if isinstance(h, Tensor) else 1


def tensors(h: State) -> Iterator[Tensor]:
    """All of them."""
    yield from [h] if isinstance(h, Tensor) else h.values()


def moved(h: State, device: torch.device) -> State:
    """The same on a device."""
    return h.to(device) if isinstance(h, Tensor) else {name: t.to(device) for name, t in h.items()}


def named(prefix: str, h: State) -> dict[str, Tensor]:
    """Every tensor under a name of its own that begins with the prefix, for a file."""
    return {prefix: h} if isinstance(h, Tensor) else {f"{prefix}/{name}": t for name, t in h.items()}


def unnamed(prefix: str, found: Mapping[str, Tensor]) -> State:
    """Inverse of `named`, from a file's tensors."""
    if prefix in found:
        return found[prefix]
    own = f"{prefix}/"
    return {name.removeprefix(own): t for name, t in found.items() if name.startswith(own)}
