"""Final states and next-token distributions of a running model, a few positions at a time.

A vocabulary of 262,144 makes a megabyte of each position's logits; with the states in hand they are made in
parts, and made again in the backward pass instead of being kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rebase.models.causal_lm import TextModel
from rebase.training.losses import restricted_logprobs, topk_plus_rest

_MAX_LOGITS = {"cpu": 2**25, "cuda": 2**27}  # numbers in the logits of one part


def compute_final_states(base: TextModel, ids: Tensor) -> Tensor:
    """What the head reads: (length,) ids → (length, hidden), behind the last norm."""
    states: Tensor = base.model.base_model(ids[None], use_cache=False).last_hidden_state[0]
    return states


def compute_logits(base: TextModel, states: Tensor) -> Tensor:
    """(n, hidden) → (n, V), as the model itself makes them."""
    logits: Tensor = base.model.get_output_embeddings()(states)
    cap = getattr(base.model.config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


def iter_position_chunks(base: TextModel, count: int) -> Iterator[slice]:
    """Positions whose logits fit at a time."""
    size = max(1, _MAX_LOGITS.get(base.device.type, 2**25) // int(base.model.config.vocab_size))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def compute_listed_logprobs(
    base: TextModel, states: Tensor, shared_ids: Tensor, columns: Tensor, temperature: float
) -> Tensor:
    """Log-probabilities of the listed shared tokens and all others, (n, k + 1): differentiable in the states.

    `ids` (m,): the shared tokens; `columns` (n, k): which of them are listed.
    """

    def compute_chunk(chunk_states: Tensor, chunk_columns: Tensor) -> Tensor:
        return topk_plus_rest(
            restricted_logprobs(compute_logits(base, chunk_states), shared_ids, temperature), chunk_columns
        )

    parts = []
    for chunk in iter_position_chunks(base, states.shape[0]):
        chunk_inputs = states[chunk], columns[chunk]
        parts.append(
            checkpoint(compute_chunk, *chunk_inputs, use_reentrant=False)
            if states.requires_grad
            else compute_chunk(*chunk_inputs)
        )
    return torch.cat(parts)
