"""One preconditioned step, in closed form, from what one text makes the target's sites read and want.

With x what a site reads, g the gradient of the text's loss at what it writes, and sums over tokens,

    G = Σ g xᵀ,    C = Σ x xᵀ + λI,    K = Σ g gᵀ + μI,
    ΔW ∝ −K⁻¹ G C⁻¹        the minimiser of  ⟨G, ΔW⟩ + ½ ⟨ΔW, K ΔW C⟩

the step of K-FAC [1503.05671]. It is cut to rank r in the same metric, where the best approximation is exact:
with Cholesky factors C = L Lᵀ and K = R Rᵀ, the r largest singular directions of R⁻¹ G L⁻ᵀ. How far to go
along the step is not known in closed form (the loss is no parabola), and is left to a line search.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from transfer.interface import LowRank
from transfer.linalg import factorize


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
