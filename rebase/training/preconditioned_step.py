"""One preconditioned step, in closed form, from what one text makes the target's sites read and want.

With x what a site reads, g the gradient of the text's loss at what it writes, and sums over tokens,

    G = Σ g xᵀ,    C = Σ x xᵀ + λI,    K = Σ g gᵀ + μI,
    ΔW ∝ −K⁻¹ G C⁻¹        the minimiser of  ⟨G, ΔW⟩ + ½ ⟨ΔW, K ΔW C⟩

the step of K-FAC [1503.05671]. It is cut to rank r in the same metric, where the best approximation is exact:
with Cholesky factors C = L Lᵀ and K = R Rᵀ, the r largest singular directions of R⁻¹ G L⁻ᵀ. How far to go
along the step is not known in closed form (the loss is no parabola), and is left to a line search.
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
    """Sums over tokens, float32, as a wide site's take hundreds of megabytes and the ridge is far above their
    rounding. `inputs`: Σ x xᵀ (i, i); `outputs`: Σ g gᵀ (o, o); `cross`: Σ g xᵀ (o, i)."""

    inputs: Tensor
    outputs: Tensor
    cross: Tensor

    @classmethod
    def zeros(cls, o: int, i: int, device: torch.device | str = "cpu") -> GradientMoments:
        """Nothing seen yet."""

        def empty(*shape: int) -> Tensor:
            return torch.zeros(*shape, device=device)

        return cls(empty(i, i), empty(o, o), empty(o, i))

    def add(self, activations: Tensor, gradients: Tensor) -> None:
        """Rows x (n, i) and g (n, o) of the same tokens."""
        activations, gradients = activations.float(), gradients.float()
        self.inputs += activations.T @ activations
        self.outputs += gradients.T @ gradients
        self.cross += gradients.T @ activations


def solve_step(moments: GradientMoments, rank: int, ridge: float) -> LowRank:
    """ΔW (o, i) of the given rank, float32. `ridge`: λ and μ in mean eigenvalues. Zero where the text wants
    nothing of this site."""
    L, R = _factor_gram(moments.inputs, ridge), _factor_gram(moments.outputs, ridge)
    whitened = torch.linalg.solve_triangular(L, moments.cross.double().T, upper=False).T
    whitened = torch.linalg.solve_triangular(R, whitened, upper=False)
    largest = float(whitened.abs().max())
    if largest == 0.0:
        return LowRank(
            whitened.new_zeros(whitened.shape[0], rank).float(),
            whitened.new_zeros(rank, whitened.shape[1]).float(),
        )
    factors = factorize(whitened / largest, rank)  # its float32 knows no sums of 1e-40
    B, A = factors.U.double() * (factors.S.double() * -largest), factors.V.double()
    A = torch.linalg.solve_triangular(L.T, A, upper=True).T
    B = torch.linalg.solve_triangular(R.T, B, upper=True)
    return LowRank(B.float(), A.float())


def _factor_gram(gram: Tensor, ridge: float) -> Tensor:
    """The lower Cholesky factor of gram + λI, λ in mean eigenvalues; of I where gram is zero."""
    gram = gram.double()
    mean = float(gram.diagonal().mean())
    eye = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    factor: Tensor = torch.linalg.cholesky(gram + ridge * mean * eye if mean > 0.0 else eye)
    return factor


# How far to go along one direction: doubling and halving until the loss is lower between
# two places than at either, then the lowest point of the parabola through these three.


@dataclass(frozen=True, slots=True)
class LineSearchResult:
    """`best`: 0 where nothing was better than not moving; `loss`: there; `tried`: every (length, loss) in the
    order of looking, 0 first."""

    best_length: float
    loss: float
    evaluations: tuple[tuple[float, float], ...]


def search_length(
    loss: Callable[[float], float], start: float, max_evaluations: int = 12
) -> LineSearchResult:
    """The length in (0, ∞) of least loss among at most `most` that are tried, `start` > 0 first.

    What is not finite counts as worse than everything.
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
