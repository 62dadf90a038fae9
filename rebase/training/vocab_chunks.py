"""Final states and next-token distributions of a model, computed in chunks of positions.

With a vocabulary of 262,144, the logits of one position take a megabyte. They are computed from the states in
chunks, and recomputed in the backward pass instead of being stored.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rebase.models.causal_lm import CausalLM
from rebase.training.losses import restricted_logprobs, topk_plus_rest

_MAX_LOGITS = {"cpu": 2**25, "cuda": 2**27}  # logits per chunk


def compute_final_states(base: CausalLM, ids: Tensor) -> Tensor:
    """The LM head's input: (length,) ids → (length, hidden), after the final norm."""
    states: Tensor = base.model.base_model(ids[None], use_cache=False).last_hidden_state[0]
    return states


def compute_logits(base: CausalLM, states: Tensor) -> Tensor:
    """(n, hidden) → (n, V), including the model's soft-capping."""
    logits: Tensor = base.model.get_output_embeddings()(states)
    cap = getattr(base.model.config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


def iter_position_chunks(base: CausalLM, count: int, max_logits: int | None = None) -> Iterator[slice]:
    """Slices of positions whose logits fit into memory: `max_logits` numbers, by default what suits the
    device."""
    max_logits = max_logits or _MAX_LOGITS.get(base.device.type, _MAX_LOGITS["cpu"])
    size = max(1, max_logits // int(base.model.config.vocab_size))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def compute_listed_logprobs(
    base: CausalLM,
    states: Tensor,
    shared_ids: Tensor,
    columns: Tensor,
    temperature: float,
    *,
    max_logits: int | None = None,
) -> Tensor:
    """Log-probabilities (n, k + 1) of the listed shared tokens and of all others; differentiable in `states`.

    `shared_ids` (m,): the shared tokens; `columns` (n, k): which of them are listed.
    `max_logits`: see `iter_position_chunks`.
    """

    def compute_chunk(chunk_states: Tensor, chunk_columns: Tensor) -> Tensor:
        return topk_plus_rest(
            restricted_logprobs(compute_logits(base, chunk_states), shared_ids, temperature), chunk_columns
        )

    parts = []
    for chunk in iter_position_chunks(base, states.shape[0], max_logits):
        chunk_inputs = states[chunk], columns[chunk]
        parts.append(
            checkpoint(compute_chunk, *chunk_inputs, use_reentrant=False)
            if states.requires_grad
            else compute_chunk(*chunk_inputs)
        )
    return torch.cat(parts)
