"""What the source says with and without its adapter at chosen positions, small enough to keep.

The k likeliest shared tokens of either are listed one by one, all others as one outcome. So the source need
not be in memory while the target is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rebase.lora.low_rank import LowRank, Site
from rebase.training.losses import compute_shared_mass, restricted_logprobs, topk_columns, topk_plus_rest
from workers.models import TextModel, updated
from workers.training.logits import final_states, logits_of, portions


@dataclass(frozen=True, slots=True)
class Heard:
    """At n positions. `columns`: (n, k) int32, rows of the shared tokens; `teacher`, `source`: (n, k + 1)
    float32 log-probabilities by S+Δ and S; `covered`: (n,) S+Δ's probability of all shared tokens together;
    `teacher_states`, `source_states`: (n, hidden) float32."""

    columns: Tensor
    teacher: Tensor
    source: Tensor
    covered: Tensor
    teacher_states: Tensor
    source_states: Tensor


@torch.no_grad()
def listen(
    source: TextModel,
    deltas: Mapping[Site, LowRank],
    ids: Tensor,
    at: Tensor,
    shared: Tensor,
    most: int,
    temperature: float,
) -> Heard:
    """One sequence, at positions `at`. `shared`: (m,) the source's ids of shared tokens, on its device.

    Both passes go over the sequence once; results are on the CPU.
    """
    alone = final_states(source, ids)[at]
    with updated(source, deltas):
        adapted = final_states(source, ids)[at]
    return heard_in(source, alone, adapted, shared, most, temperature)


@torch.no_grad()
def heard_in(
    source: TextModel, alone: Tensor, adapted: Tensor, shared: Tensor, most: int, temperature: float
) -> Heard:
    """The same from final states (n, hidden) without and with the adapter."""
    found: list[tuple[Tensor, ...]] = []
    for part in portions(source, alone.shape[0]):
        logits = logits_of(source, adapted[part])
        covered, told = compute_shared_mass(logits, shared), restricted_logprobs(logits, shared, temperature)
        own = restricted_logprobs(logits_of(source, alone[part]), shared, temperature)
        columns = topk_columns(told, own, most)
        found.append((columns.int(), topk_plus_rest(told, columns), topk_plus_rest(own, columns), covered))
    columns, told, own, covered = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    return Heard(columns, told, own, covered, adapted.float().cpu(), alone.float().cpu())
