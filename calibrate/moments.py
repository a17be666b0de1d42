"""What ERQ sees of the data: three sums of outer products per layer, streamed.

Letters:  x (k,) float input;  x̂ (k,) the same input quantized;  x̃ = [x̂; 1] where the layer has a bias
          G = Σ x̃ x̃ᵀ (K, K)    D = Σ (x − x̂) x̃ᵀ (k, K)    C = Σ (x − x̂)(x − x̂)ᵀ (k, k)    N rows;  K = k + 1 or k
Sums, never means: the ridge of the paper's code is added to the sum (docs/method.md, "Moments"), and halves add up to
the whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Moments:
    """The running sums, float64. Products are made in float32 (TF32 off), chunk by chunk, and added in float64."""

    G: Tensor
    D: Tensor
    C: Tensor
    n_rows: int
    bias: bool

    @classmethod
    def zero(cls, k: int, *, bias: bool, device: torch.device | None = None) -> "Moments":
        """Empty sums of a layer with k inputs."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        K = k + bias
        return cls(G=zeros(K, K), D=zeros(k, K), C=zeros(k, k), n_rows=0, bias=bias)

    def add(self, x: Tensor, x_hat: Tensor) -> None:
        """Add a chunk of rows: x, x_hat (rows, k) float32. D is made from the difference, not as a difference of sums.

        The 1 of x̃ gets sums of its own instead of a column: a product of k + 1 columns can take twice the time of k.
        """
        d, k = x - x_hat, x.shape[1]
        self.G[:k, :k] += x_hat.T @ x_hat
        self.D[:, :k] += d.T @ x_hat
        self.C += d.T @ d
        if self.bias:
            total = x_hat.sum(0)
            self.G[k, :k] += total
            self.G[:k, k] += total
            self.G[k, k] += len(x)
            self.D[:, k] += d.sum(0)
        self.n_rows += len(x)

    @classmethod
    def of(cls, x: Tensor, x_hat: Tensor, *, bias: bool = True) -> "Moments":
        """The sums over a chunk of rows alone: x, x_hat (rows, k) float32."""
        moments = cls.zero(x.shape[1], bias=bias, device=x.device)
        moments.add(x, x_hat)
        return moments

    def again(self, times: float) -> "Moments":
        """What the same rows add to the sums if each counts `times` times more; they are no further rows."""
        return Moments(G=self.G * times, D=self.D * times, C=self.C * times, n_rows=0, bias=self.bias)

    def __iadd__(self, other: "Moments") -> "Moments":
        self.G += other.G
        self.D += other.D
        self.C += other.C
        self.n_rows += other.n_rows
        return self

    def __sub__(self, part: "Moments") -> "Moments":
        """The sums over the rows that are not in `part`."""
        return Moments(
            G=self.G - part.G, D=self.D - part.D, C=self.C - part.C, n_rows=self.n_rows - part.n_rows, bias=self.bias
        )

    def mean(self) -> tuple[Tensor, Tensor]:
        """μ = E[x̂] (k,) and the biased covariance Σ (k, k): μμᵀ + Σ = G/N is what rounding refinement needs."""
        if not self.bias:
            raise ValueError("the mean is a column of G only in layers with a bias")
        mu = self.G[:-1, -1] / self.n_rows
        return mu, self.G[:-1, :-1] / self.n_rows - torch.outer(mu, mu)

    def output_error(self, W: Tensor, W_hat: Tensor) -> float:
        """Σ‖W x̃₀ − Ŵ x̃‖² over all rows, with x̃₀ = [x; 1]: the layer's output error, weights and inputs quantized."""
        (error,) = self.output_errors(W, [W_hat])
        return error

    def output_errors(self, W: Tensor, W_hats: Sequence[Tensor]) -> list[float]:
        """The output error of each Ŵ. Two products serve all of them, and each takes one more, none where Ŵ = W.

        With Δ = W − Ŵ (n, K) and W₀ the weight columns of W:  W x̃₀ − Ŵ x̃ = Δ x̃ + W₀ (x − x̂), hence
        tr(Δ G Δᵀ) + 2 tr(W₀ D Δᵀ) + tr(W₀ C W₀ᵀ).
        """
        W0 = W[:, : len(self.C)]
        cross, of_inputs = W0 @ self.D, ((W0 @ self.C) * W0).sum()
        errors = []
        for W_hat in W_hats:
            delta, quadratic = W - W_hat, of_inputs
            if bool(delta.any()):
                quadratic = ((delta @ self.G) * delta).sum() + 2 * (cross * delta).sum() + of_inputs
            errors.append(float(quadratic.clamp_min(0)))
        return errors

    def output_energy(self, W: Tensor) -> float:
        """Σ‖W x̃₀‖² over all rows: what errors are relative to. x̃₀ = x̃ + [x − x̂; 0]."""
        return self.output_error(W, torch.zeros_like(W))
