"""How far a quantized model's tokens are from the float model's, and what is decided from them.

Letters:  n crops, m ≤ n of them looked into, T = 1 + p² tokens, the CLS token first, d channels, c classes
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 16
HEAD_RIDGE = 1e-2  # of the mean diagonal of XᵀX


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a model makes of crops."""

    tokens: Tensor  # (n, T, d), behind the last LayerNorm
    maps: Tensor  # (n, H, W), the decoder's saliency
    blocks: tuple[Tensor, ...]  # (m, T, d) behind every block, of the first m crops

    @property
    def cls(self) -> Tensor:
        """(n, d)"""
        return self.tokens[:, 0]


@torch.no_grad()
def look(model: Any, decoder: nn.Module, pixels: Tensor, *, inside: int = 0) -> Seen:
    """Run a timm ViT over crops (n, 3, H, W), n ≥ 1; `inside`: of how many the hidden states are kept."""
    tokens, maps = [], []
    now: dict[int, Tensor] = {}
    kept: list[list[Tensor]] = [[] for _ in model.blocks]
    hooks = [
        block.register_forward_hook(lambda _, __, out, i=i: now.__setitem__(i, out))
        for i, block in enumerate(model.blocks)
    ]
    for start in range(0, len(pixels), BATCH):
        tokens.append(model.forward_features(pixels[start : start + BATCH]))
        maps.append(decoder(tokens[-1]))
        for i, hidden in now.items():
            kept[i].append(hidden[: max(inside - start, 0)].clone())
    for hook in hooks:
        hook.remove()
    return Seen(tokens=torch.cat(tokens), maps=torch.cat(maps), blocks=tuple(torch.cat(own) for own in kept))


@dataclass(frozen=True, kw_only=True)
class Head:
    """A linear classifier on CLS tokens, in closed form."""

    mean: Tensor  # (d,)
    W: Tensor  # (d, c) float64

    @classmethod
    def fit(cls, x: Tensor, labels: Tensor) -> "Head":
        """minimise Σ‖Wᵀ(x − x̄) − (y − ȳ)‖² + λ‖W‖², y one-hot:  W = (XᵀX + λI)⁻¹ XᵀY

        x (n, d), labels (n,) in 0 … c − 1; λ = 0.01 times the mean diagonal of XᵀX.
        """
        mean = x.mean(0)
        X, Y = (x - mean).double(), F.one_hot(labels).double()
        G = X.T @ X  # (d, d)
        ridge = HEAD_RIDGE * G.diagonal().mean() * torch.eye(len(G), dtype=torch.float64)
        return cls(mean=mean, W=torch.linalg.solve(G + ridge, X.T @ (Y - Y.mean(0))))

    def classes(self, x: Tensor) -> Tensor:
        """(n, d) → (n,)"""
        return ((x - self.mean).double() @ self.W).argmax(1)

    def top1(self, x: Tensor, labels: Tensor) -> float:
        """In per cent."""
        return share(self.classes(x), labels)


def measured(found: Seen, exact: Seen, head: Head, labels: Tensor) -> dict[str, float]:
    """The figures of a quantized model beside the float one's, on the same n crops."""
    pairs = {"cls": (found.cls, exact.cls), "patch": (found.tokens[:, 1:], exact.tokens[:, 1:])}
    figures = {f"{name}_error": squared_error(a, b) for name, (a, b) in pairs.items()}
    figures |= {f"{name}_cosine": float(F.cosine_similarity(a, b, dim=-1).mean()) for name, (a, b) in pairs.items()}
    figures["top1"] = head.top1(found.cls, labels)
    figures["agreement"] = share(head.classes(found.cls), head.classes(exact.cls))
    return figures | {"saliency": correlation(found.maps, exact.maps)}


def by_depth(found: Seen, exact: Seen) -> dict[str, float]:
    """block_01 … → relative squared error of the hidden state behind it."""
    pairs = zip(found.blocks, exact.blocks, strict=True)
    return {f"block_{i:02d}": squared_error(a, b) for i, (a, b) in enumerate(pairs, 1)}


def squared_error(found: Tensor, exact: Tensor) -> float:
    """Σ‖x̂ − x‖²/Σ‖x‖²"""
    return float((found - exact).double().square().sum() / exact.double().square().sum())


def share(found: Tensor, wanted: Tensor) -> float:
    """Of equal entries, in per cent."""
    return 100 * float((found == wanted).double().mean())


def correlation(found: Tensor, exact: Tensor) -> float:
    """Pearson's, of the two maps (H, W) of a crop, mean over the n crops; 0 for a map that is the same everywhere."""
    a, b = (maps.double().flatten(1) - maps.double().mean((1, 2))[:, None] for maps in (found, exact))  # (n, H W)
    return float(F.cosine_similarity(a, b, dim=1).mean())
