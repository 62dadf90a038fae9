"""The source's predictions with and without its adapter, compact enough to store.

The k most likely shared tokens are listed one by one, all others as a single outcome. The source can then be
unloaded while the target is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rebase.lora.low_rank import LowRank, Site
from rebase.models.causal_lm import CausalLM, with_deltas
from rebase.training.losses import compute_shared_mass, restricted_logprobs, topk_columns, topk_plus_rest
from rebase.training.vocab_chunks import compute_final_states, compute_logits, iter_position_chunks


@dataclass(frozen=True, slots=True)
class TeacherLogits:
    """Predictions at n positions. `columns`: (n, k) int32, indices into the shared tokens; `teacher`,
    `source`: (n, k + 1) float32 log-probabilities under S+Δ and S; `covered`: (n,) S+Δ's total probability of
    them; `teacher_states`, `source_states`: (n, hidden) float32."""

    columns: Tensor
    teacher: Tensor
    source: Tensor
    covered: Tensor
    teacher_states: Tensor
    source_states: Tensor


@torch.no_grad()
def compute_teacher_logits(
    source: CausalLM,
    deltas: Mapping[Site, LowRank],
    ids: Tensor,
    positions: Tensor,
    shared_ids: Tensor,
    max_columns: int,
    temperature: float,
) -> TeacherLogits:
    """For one sequence, at `positions`. `shared_ids`: (m,) the source's ids of the shared tokens, on its
    device.

    Runs one forward pass each with and without the adapter; results are on the CPU.
    """
    source_states = compute_final_states(source, ids)[positions]
    with with_deltas(source, deltas):
        teacher_states = compute_final_states(source, ids)[positions]
    return build_teacher_logits(source, source_states, teacher_states, shared_ids, max_columns, temperature)


@torch.no_grad()
def build_teacher_logits(
    source: CausalLM,
    source_states: Tensor,
    teacher_states: Tensor,
    shared_ids: Tensor,
    max_columns: int,
    temperature: float,
) -> TeacherLogits:
    """The same, from final states (n, hidden) without and with the adapter."""
    chunk_results: list[tuple[Tensor, ...]] = []
    for chunk in iter_position_chunks(source, source_states.shape[0]):
        logits = compute_logits(source, teacher_states[chunk])
        covered, teacher_logprobs = (
            compute_shared_mass(logits, shared_ids),
            restricted_logprobs(logits, shared_ids, temperature),
        )
        source_logprobs = restricted_logprobs(
            compute_logits(source, source_states[chunk]), shared_ids, temperature
        )
        columns = topk_columns(teacher_logprobs, source_logprobs, max_columns)
        chunk_results.append(
            (
                columns.int(),
                topk_plus_rest(teacher_logprobs, columns),
                topk_plus_rest(source_logprobs, columns),
                covered,
            )
        )
    columns, teacher_logprobs, source_logprobs, covered = (
        torch.cat(parts).cpu() for parts in zip(*chunk_results, strict=True)
    )
    return TeacherLogits(
        columns,
        teacher_logprobs,
        source_logprobs,
        covered,
        teacher_states.float().cpu(),
        source_states.float().cpu(),
    )
