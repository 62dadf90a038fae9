"""Updates of several roles as one update of the module that computes them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from rebase.lora.low_rank import LowRank, Role
from transfer.architectures.architecture import Architecture


def fuse(architecture: Architecture, roles: Sequence[Role], blocks: Mapping[Role, LowRank]) -> LowRank:
    """Stack role updates into their module's rows: A concatenated, B block by block, zeros for absent roles.

    Lossless. The rank is the sum of the blocks' ranks, except that roles with the very same A (a fused
    adapter carried unchanged) keep sharing it. Without any block the result has rank 0.
    """
    if len(roles) == 1 and blocks:
        return blocks[roles[0]]
    o = sum(architecture.out_width(role) for role in roles)
    i = architecture.in_width(roles[0])
    shared: list[torch.Tensor] = []
    columns: list[torch.Tensor] = []
    for role in roles:
        if role not in blocks:
            continue
        block = blocks[role]
        place = next((k for k, A in enumerate(shared) if torch.equal(A, block.A)), None)
        if place is None:
            place = len(shared)
            shared.append(block.A)
            columns.append(torch.zeros(o, block.rank, dtype=block.B.dtype))
        columns[place][architecture.rows(role)] = block.B
    if not shared:
        return LowRank(torch.zeros(o, 0), torch.zeros(0, i))
    return LowRank(torch.cat(columns, 1), torch.cat(shared, 0))
