"""One layer's calibration rows, stored: the product only ever sums them, so the sums are checked against the rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from erq_export.calibrate.moments import Moments
from erq_export.contract.formats.affine import Grid, asymmetric_grid


@dataclass(frozen=True, kw_only=True)
class Rows:
    """X (N, k) float inputs, X_hat (N, k) the same quantized, W (n, K) weight with the bias last; all float64."""

    X: Tensor
    X_hat: Tensor
    W: Tensor

    @property
    def X_tilde(self) -> Tensor:
        """[x̂; 1] per row (N, K)."""
        return torch.cat([self.X_hat, torch.ones_like(self.X[:, :1])], 1)

    @property
    def outputs(self) -> Tensor:
        """W [x; 1] per row (N, n): the layer in full precision."""
        return self.X @ self.W[:, :-1].T + self.W[:, -1]

    @property
    def moments(self) -> Moments:
        moments = Moments.zero(self.X.shape[1], bias=True)
        moments.add(self.X, self.X_hat)
        return moments

    def error(self, W_hat: Tensor) -> Tensor:
        """Σ‖Ŵ x̃ − W [x; 1]‖² over all rows: shape ()."""
        return (self.X_tilde @ W_hat.T - self.outputs).square().sum()


def layer_rows(*, n_rows: int = 300, k: int = 24, n: int = 16, bits: int = 3, seed: int = 0) -> Rows:
    """Correlated inputs with a mean, on a coarse grid: without correlation no column could make up for another."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    X = normal(n_rows, k // 3) @ normal(k // 3, k) + 0.5 * normal(n_rows, k) + normal(k)  # (N, k)
    X_hat = asymmetric_grid(X.min(), X.max(), bits).fake_quantize(X)
    return Rows(X=X, X_hat=X_hat, W=normal(n, k + 1))


def row_grid(W: Tensor, bits: int) -> Grid:
    """The grid of every row's own range: (n, 1)."""
    return asymmetric_grid(W.amin(1, keepdim=True), W.amax(1, keepdim=True), bits)
