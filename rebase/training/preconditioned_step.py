"""One preconditioned gradient step in closed form, and the line search for its length.

With x the input of a site, g the gradient of the loss with respect to its output, and sums over tokens,

    G = Σ g xᵀ,    C = Σ x xᵀ + λI,    K = Σ g gᵀ + μI,
    ΔW ∝ −K⁻¹ G C⁻¹        the minimiser of  ⟨G, ΔW⟩ + ½ ⟨ΔW, K ΔW C⟩

the step of K-FAC [1503.05671]. It is truncated to rank r optimally in the same metric: with Cholesky factors
C = L Lᵀ and K = R Rᵀ, by the r largest singular directions of R⁻¹ G L⁻ᵀ. The best step length has no closed
form (the loss is not quadratic), so a line search finds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rebase.lora.linalg import factorize
from rebase.lora.low_rank import LowRank


@dataclass(slots=True)
class GradientMoments:
    """Sums over tokens: `inputs` Σ x xᵀ (i, i), `outputs` Σ g gᵀ (o, o), `cross` Σ g xᵀ (o, i). float32, as
    those of a wide site take hundreds of megabytes and the ridge is far above their rounding error."""

    inputs: Tensor
    outputs: Tensor
    cross: Tensor

    @classmethod
    def zeros(cls, o: int, i: int, device: torch.device | str = "cpu") -> GradientMoments:
        """Empty sums."""

        def empty(*shape: int) -> Tensor:
            return torch.zeros(*shape, device=device)

        return cls(empty(i, i), empty(o, o), empty(o, i))

    def add(self, activations: Tensor, gradients: Tensor) -> None:
        """Add x (n, i) and g (n, o) of the same tokens."""
        activations, gradients = activations.float(), gradients.float()
        self.inputs += activations.T @ activations
        self.outputs += gradients.T @ gradients
        self.cross += gradients.T @ activations


def solve_step(moments: GradientMoments, rank: int, ridge: float) -> LowRank:
    """ΔW (o, i) of the given rank, float32. `ridge`: λ and μ in units of the mean eigenvalue. Zero if the
    gradient is zero."""
    L, R = _factor_gram(moments.inputs, ridge), _factor_gram(moments.outputs, ridge)
    whitened = torch.linalg.solve_triangular(L, moments.cross.double().T, upper=False).T
    whitened = torch.linalg.solve_triangular(R, whitened, upper=False)
    largest = float(whitened.abs().max())
    if largest == 0.0:
        return LowRank(
            whitened.new_zeros(whitened.shape[0], rank).float(),
            whitened.new_zeros(rank, whitened.shape[1]).float(),
        )
    factors = factorize(whitened / largest, rank)  # scaled, because values near 1e-40 underflow in float32
    B, A = factors.U.double() * (factors.S.double() * -largest), factors.V.double()
    A = torch.linalg.solve_triangular(L.T, A, upper=True).T
    B = torch.linalg.solve_triangular(R.T, B, upper=True)
    return LowRank(B.float(), A.float())


def _factor_gram(gram: Tensor, ridge: float) -> Tensor:
    """The lower Cholesky factor of gram + λI, λ in units of the mean eigenvalue; of I if gram is zero."""
    gram = gram.double()
    mean = float(gram.diagonal().mean())
    eye = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    factor: Tensor = torch.linalg.cholesky(gram + ridge * mean * eye if mean > 0.0 else eye)
    return factor


# Line search: double or halve the length until a minimum is bracketed, then take the vertex of the parabola
# through the three points.


@dataclass(frozen=True, slots=True)
class LineSearchResult:
    """`best_length`: 0 if no step lowered the loss; `loss`: the loss there; `evaluations`: every (length,
    loss) in order, starting with length 0."""

    best_length: float
    loss: float
    evaluations: tuple[tuple[float, float], ...]


def search_length(
    loss: Callable[[float], float], start: float, max_evaluations: int = 12
) -> LineSearchResult:
    """The length ≥ 0 with the lowest loss among at most `max_evaluations`, starting at `start` > 0.

    Losses that are not finite count as infinity.
    """
    losses: dict[float, float] = {}

    def evaluate(length: float) -> float:
        if length not in losses:
            value = loss(length)
            losses[length] = value if math.isfinite(value) else math.inf
        return losses[length]

    current, loss_at_zero = start, evaluate(0.0)
    if evaluate(current) < loss_at_zero and evaluate(2.0 * current) < evaluate(current):
        while len(losses) < max_evaluations and evaluate(2.0 * current) < evaluate(current):
            current *= 2.0
    else:
        while len(losses) < max_evaluations and (
            evaluate(current) >= loss_at_zero or evaluate(0.5 * current) < evaluate(current)
        ):
            current *= 0.5
    low, middle, high = (losses.get(factor * current, math.inf) for factor in (0.5, 1.0, 2.0))
    curvature = low - 2.0 * middle + high
    if len(losses) < max_evaluations and 0.0 < curvature < math.inf:
        evaluate(current * 2.0 ** (0.5 * (low - high) / curvature))
    best_length = min(losses, key=lambda length: (losses[length], length))
    return LineSearchResult(best_length, losses[best_length], tuple(losses.items()))
