"""Inner products between updates: all that prediction from a pool needs to know of them.

K_ij = Σ_sites ⟨ΔW_i, ΔW_j⟩ with ⟨B_iA_i, B_jA_j⟩ = Σ (B_iᵀB_j) ∘ (A_iA_jᵀ): nothing dense is built, and how
each update is factored does not matter (raw factors of one ΔW can point in opposite directions).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from transfer.interface import LowRank, Site
from transfer.linalg import inner


def site_kernel(updates: Sequence[LowRank]) -> Tensor:
    """⟨ΔW_i, ΔW_j⟩ at one site, (n, n) float64, symmetric to the last bit."""
    n = len(updates)
    kernel = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(i + 1):
            kernel[i, j] = kernel[j, i] = inner(updates[i], updates[j])
    return kernel


def total(kernels: Mapping[Site, Tensor]) -> Tensor:
    """The kernel of whole adapters: the sum over sites, in site order for equal bytes."""
    return torch.stack([kernels[site] for site in sorted(kernels)]).sum(0)


def combine(updates: Sequence[LowRank], weights: Tensor) -> LowRank:
    """Σ c_i ΔW_i as factors of rank Σ r_i; anchors of weight 0 are left out. Exact."""
    used = [(update, float(c)) for update, c in zip(updates, weights, strict=True) if float(c) != 0.0]
    if not used:
        o, i = updates[0].shape
        return LowRank(torch.zeros(o, 1), torch.zeros(1, i))
    return LowRank(torch.cat([u.B * c for u, c in used], 1), torch.cat([u.A for u, _ in used], 0))
