"""CAST's maps: linear maps between the two models' activations at one site [004, §3.2].

    ΔW_t x_t = M_out · B · A · M_in · x_t,     M_in (i_s, i_t),  M_out (o_t, o_s)

The loss depends on M_in only through A·M_in and on M_out only through M_out·B, so its gradient lies in the
span of A's rows and of B's columns, whatever the loss is. Only that part is stored and trained:

    B A = U diag(σ) Vᵀ,     M_in = M_in⁰ + V E,     M_out = M_out⁰ + F Uᵀ,     E (r, i_t), F (o_t, r)

The rest of each map keeps its initial value. This takes megabytes instead of gigabytes; the trained update
folds exactly into a LoRA of the same rank; the factorization of ΔW_s does not matter; and another adapter
benefits from the training to the extent that its own update lies in these directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rebase.lora.linalg import thin_svd
from rebase.lora.low_rank import LowRank, Site
from rebase.methods.base import SiteMaps

CAST_MAPS_VERSION = 1  # increase it whenever the same settings may give different maps


@dataclass(frozen=True, slots=True)
class TrainedMaps:
    """The trained part of one site pair's maps: V (i_s, p), U (o_s, p) orthonormal; E (p, i_t), F (o_t, p).
    float32 on the CPU."""

    V: Tensor
    E: Tensor
    U: Tensor
    F: Tensor

    def to_site_maps(self, M_in: Tensor, M_out: Tensor) -> SiteMaps:
        """The full maps, given the initial ones."""
        V, E, U, F = (tensor.to(M_in) for tensor in (self.V, self.E, self.U, self.F))
        return SiteMaps(M_in + V @ E, M_out + F @ U.T, V, U)


class TrainableMaps:
    """One site pair during training: A' = √σ (Vᵀ M_in⁰ + E), B' = (M_out⁰ U + F) √σ.

    `E` and `F` are leaf tensors, initially zero. Directions with σ = 0 are never changed.
    """

    def __init__(self, delta: LowRank, M_in: Tensor, M_out: Tensor) -> None:
        self.U, singular_values, self.V = thin_svd(delta)
        self.root_values = singular_values.sqrt()
        self._initial_A, self._initial_B = self.V.T @ M_in, M_out @ self.U
        self.E = torch.zeros_like(self._initial_A).requires_grad_()
        self.F = torch.zeros_like(self._initial_B).requires_grad_()

    def compute_update(self) -> LowRank:
        """The target's update under the current maps, differentiable."""
        return LowRank(
            (self._initial_B + self.F) * self.root_values,
            self.root_values[:, None] * (self._initial_A + self.E),
        )

    def to_trained_maps(self) -> TrainedMaps:
        """The trained part, to store."""
        tensors = (self.V, self.E, self.U, self.F)
        return TrainedMaps(*(tensor.detach().cpu().float().contiguous() for tensor in tensors))


class TrainableUpdates(Mapping[Site, LowRank]):
    """The target's current update, recomputed from the maps at every forward pass.

    Several maps for one site are summed by concatenating their factors.
    """

    def __init__(self, maps: Mapping[Site, Sequence[TrainableMaps]]) -> None:
        self._maps = maps

    def __getitem__(self, site: Site) -> LowRank:
        parts = [site_maps.compute_update() for site_maps in self._maps[site]]
        if len(parts) == 1:
            return parts[0]
        return LowRank(torch.cat([part.B for part in parts], 1), torch.cat([part.A for part in parts], 0))

    def __iter__(self) -> Iterator[Site]:
        return iter(self._maps)

    def __len__(self) -> int:
        return len(self._maps)


def init_random_maps(i_s: int, i_t: int, o_s: int, o_t: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random initial maps, float32. The paper does not specify any; these are Gaussian, scaled so that each
    map preserves the norm of its input in expectation."""
    generator = torch.Generator().manual_seed(seed)
    M_in = torch.randn(i_s, i_t, generator=generator) / i_s**0.5
    return M_in, torch.randn(o_t, o_s, generator=generator) / o_t**0.5
