"""DARE (Yu et al. 2024, as used by [000]): drop entries of an update and rescale the rest; after any method.

`random` keeps each entry with probability 1 − p and divides by 1 − p, so the expected update is unchanged.
`magnitude`, the literal reading of [000], keeps the largest entries and also divides, so the norm grows
several times; hence its flag. Either makes ΔW dense, so the result is truncated to a rank.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from rebase.lora.linalg import compress, frobenius
from rebase.lora.low_rank import Site
from rebase.methods.base import SiteResult
from rebase.methods.base_params import DareParams, MethodParams


def drop_and_rescale(result: SiteResult, params: DareParams, site: Site) -> SiteResult:
    """Apply DARE and truncate to the update's rank (or `params.rank`).

    The mask depends only on `params.seed` and the target site. Measurements: `dare_norm_ratio` =
    ‖dropped‖_F / ‖ΔW‖_F before truncation, `dare_lost_energy` = the share of ‖dropped‖²_F that truncation
    loses. For a sweep, call this once per drop rate with `params.p` set to it; raises ValueError otherwise.
    """
    if params.p == "sweep":
        raise ValueError("a sweep tries several drop rates; call this once per rate")
    norm_before = frobenius(result.delta)
    if norm_before == 0.0:
        return result
    update = result.delta.B @ result.delta.A
    update.mul_(_build_mask(update, params, params.p, site)).div_(1.0 - params.p)
    thinned_norm = float(update.norm())
    truncated, lost_energy = compress(update, params.rank or result.delta.rank)
    dare_metrics = {"dare_norm_ratio": thinned_norm / norm_before, "dare_lost_energy": lost_energy}
    flags = (*result.flags, "dare_magnitude") if params.mode == "magnitude" else result.flags
    norm_metric = {"update_norm": frobenius(truncated)}
    return SiteResult(truncated, {**result.measurements, **norm_metric, **dare_metrics}, flags)


def _build_mask(update: Tensor, params: DareParams, p: float, site: Site) -> Tensor:
    """True for entries that are kept."""
    if params.mode == "magnitude":
        drop_count = min(int(p * update.numel()), update.numel() - 1)
        if drop_count == 0:
            return torch.ones_like(update, dtype=torch.bool)
        magnitudes = update.abs()
        return magnitudes > magnitudes.flatten().kthvalue(drop_count).values
    digest = hashlib.sha256(f"{params.seed}:{site}".encode()).digest()
    # On the CPU, so that every device drops the same entries.
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
    return (torch.rand(update.shape, generator=generator) >= p).to(update.device)


# 0 means no DARE. The others are those of the paper [000].
DARE_DROP_RATES = (0.0, 0.8, 0.9, 0.95, 0.99)


def dare_variants(params: MethodParams) -> tuple[MethodParams, ...]:
    """The method's parameters at each drop rate of a DARE sweep, 0 first; unchanged if there is no sweep."""
    dare = params.dare
    if dare is None or dare.p != "sweep":
        return (params,)
    return tuple(
        params.model_copy(update={"dare": dare.model_copy(update={"p": rate}) if rate else None})
        for rate in DARE_DROP_RATES
    )
