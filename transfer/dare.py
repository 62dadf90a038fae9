"""DARE (Yu et al. 2024, as used by [000]): drop entries of an update and rescale the rest; after any method.

`random` keeps each entry with probability 1 − p and divides by 1 − p, so that the expected update stays as
it was. `magnitude`, the literal reading of [000], keeps the largest entries and divides too, so that the
result is several times as long as the update; hence its flag. Either makes ΔW dense, so it is cut to a rank.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from transfer.catalogue import DareParams
from transfer.interface import Carried, Site
from transfer.linalg import compress, frobenius


def dare(carried: Carried, params: DareParams, site: Site) -> Carried:
    """The thinned update at the rank it had (or `params.rank`), with what the cut lost.

    The mask depends on `params.seed` and the target site alone. Measurements: `dare_norm_ratio` =
    ‖thinned‖_F / ‖ΔW‖_F before the cut, `dare_lost_energy` = the share of ‖thinned‖²_F that the cut lost.
    A sweep is called for once per share, with `params.p` set to it: ValueError otherwise.
    """
    if params.p == "sweep":
        raise ValueError("a sweep tries several shares; each is a call of its own")
    before = frobenius(carried.delta)
    if before == 0.0:
        return carried
    update = carried.delta.B @ carried.delta.A
    update.mul_(_mask(update, params, params.p, site)).div_(1.0 - params.p)
    thinned = float(update.norm())
    moved, lost = compress(update, params.rank or carried.delta.rank)
    measured = {"dare_norm_ratio": thinned / before, "dare_lost_energy": lost}
    flags = (*carried.flags, "dare_magnitude") if params.mode == "magnitude" else carried.flags
    after = {"update_norm": frobenius(moved)}
    return Carried(moved, {**carried.measurements, **after, **measured}, flags)


def _mask(update: Tensor, params: DareParams, p: float, site: Site) -> Tensor:
    """True where an entry stays."""
    if params.mode == "magnitude":
        dropped = min(int(p * update.numel()), update.numel() - 1)
        if dropped == 0:
            return torch.ones_like(update, dtype=torch.bool)
        size = update.abs()
        return size > size.flatten().kthvalue(dropped).values
    digest = hashlib.sha256(f"{params.seed}:{site}".encode()).digest()
    # On the CPU, so that every device drops the same entries.
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
    return (torch.rand(update.shape, generator=generator) >= p).to(update.device)
