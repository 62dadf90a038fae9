"""Token log-probabilities under a causal language model.

Only the requested positions go through the head, so a prompt before an answer costs nothing there. With a
vocabulary of 262,144 the head costs more than all the layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rebase.models.causal_lm import CausalLM, compute_logits_at

_MAX_BATCH_ROWS = 32  # maximum rows per batch


@dataclass(frozen=True, slots=True)
class PassLimits:
    """What one forward pass may hold. `min_chunk_tokens`: the fewest tokens per pass over a text whose logits
    do not fit at once."""

    logits: int = 2**26
    tokens: int = 2**12
    min_chunk_tokens: int = 16


_LIMITS = {"cpu": PassLimits(), "cuda": PassLimits(logits=2**28, tokens=2**14)}

TokenLogprob = tuple[float, bool]  # log-probability in nats, and whether it was the most likely token


def compute_token_logprobs(
    base: CausalLM,
    rows: Sequence[list[int]],
    first_positions: Sequence[int] | None = None,
    *,
    limits: PassLimits | None = None,
) -> list[list[TokenLogprob]]:
    """Log-probabilities of each row's ids, starting at its position in `first_positions` (at least 1;
    default 1). `limits`: default what suits the device."""
    limits = limits or _get_limits(base)
    first_positions = [1] * len(rows) if first_positions is None else first_positions
    results: list[list[TokenLogprob]] = [[] for _ in rows]
    for batch in _iter_batches(base, rows, first_positions, limits):
        if len(batch) == 1 and len(rows[batch[0]]) - first_positions[batch[0]] > get_max_logit_positions(
            base, limits
        ):
            results[batch[0]] = _score_in_chunks(base, rows[batch[0]], first_positions[batch[0]], limits)
            continue
        batch_results = _score_batch(base, [rows[at] for at in batch], [first_positions[at] for at in batch])
        for at, row in zip(batch, batch_results, strict=True):
            results[at] = row
    return results


def pad_right(rows: Sequence[list[int]]) -> Tensor:
    """(n, longest) int64, padded on the right with zeros, which causal attention never sees."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
    return ids


def gather_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-softmax of logits (…, vocabulary) at ids (…): (…) float32."""
    logits = logits.float()
    picked: Tensor = logits.gather(-1, ids[..., None])[..., 0] - logits.logsumexp(-1)
    return picked


def _iter_batches(
    base: CausalLM, rows: Sequence[list[int]], first_positions: Sequence[int], limits: PassLimits
) -> Iterator[list[int]]:
    """Batches of row indices, longest rows first, as many per batch as fit; rows without positions to score
    are skipped."""
    max_positions = get_max_logit_positions(base, limits)
    batch: list[int] = []
    position_count = 0
    for at in sorted(range(len(rows)), key=lambda at: (-len(rows[at]), at)):
        row_positions = len(rows[at]) - first_positions[at]
        if row_positions <= 0:
            continue
        tokens = (len(batch) + 1) * len(rows[batch[0] if batch else at])
        if batch and (
            len(batch) == _MAX_BATCH_ROWS
            or tokens > limits.tokens
            or position_count + row_positions > max_positions
        ):
            yield batch
            batch, position_count = [], 0
        batch.append(at)
        position_count += row_positions
    if batch:
        yield batch


def get_max_logit_positions(base: CausalLM, limits: PassLimits | None = None) -> int:
    """Number of positions whose logits fit in one pass."""
    limits = limits or _get_limits(base)
    return max(limits.min_chunk_tokens, limits.logits // int(base.model.config.vocab_size))


def _get_limits(base: CausalLM) -> PassLimits:
    return _LIMITS.get(base.device.type, _LIMITS["cpu"])


@torch.no_grad()
def _score_batch(
    base: CausalLM, rows: Sequence[list[int]], first_positions: Sequence[int]
) -> list[list[TokenLogprob]]:
    ids = pad_right(rows).to(base.device)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for index, (row, first) in enumerate(zip(rows, first_positions, strict=True)):
        mask[index, first - 1 : len(row) - 1] = True
    logits = compute_logits_at(base, ids, mask)
    pairs = iter(_pair_logprobs(logits, ids[:, 1:][mask[:, :-1]]))
    return [[next(pairs) for _ in row[first:]] for row, first in zip(rows, first_positions, strict=True)]


@torch.no_grad()
def _score_in_chunks(base: CausalLM, row: list[int], first: int, limits: PassLimits) -> list[TokenLogprob]:
    """Score a row whose logits do not fit at once, in chunks with a key-value cache."""
    ids = torch.tensor([row], device=base.device)
    results: list[TokenLogprob] = []
    past_key_values = None
    start = 0
    while start < len(row) - 1:
        is_before_first = start < first - 1
        size = limits.tokens if is_before_first else get_max_logit_positions(base, limits)
        end = min(start + size, first - 1 if is_before_first else len(row) - 1)
        out = base.model(
            input_ids=ids[:, start:end],
            past_key_values=past_key_values,
            use_cache=True,
            logits_to_keep=1 if is_before_first else 0,
        )
        past_key_values = out.past_key_values
        if not is_before_first:
            results += _pair_logprobs(out.logits[0], ids[0, start + 1 : end + 1])
        start = end
    return results


def _pair_logprobs(logits: Tensor, ids: Tensor) -> list[TokenLogprob]:
    is_likeliest = (logits.argmax(-1) == ids).tolist()
    return list(zip(gather_logprobs(logits, ids).tolist(), is_likeliest, strict=True))
