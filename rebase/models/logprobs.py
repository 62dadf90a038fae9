"""Token log-probabilities under a causal language model.

Only the requested positions go through the head, so a prompt before an answer costs nothing there. With a
vocabulary of 262,144 the head costs more than all the layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rebase.models.causal_lm import TextModel, logits_at

_LOGITS = {"cpu": 2**26, "cuda": 2**28}  # maximum logits per pass
_TOKENS = {"cpu": 2**12, "cuda": 2**14}  # maximum tokens per pass
_ROWS = 32  # maximum rows per batch
_SHORTEST = 16  # minimum tokens per pass over a text whose logits do not fit at once

Foretold = tuple[float, bool]  # log-probability in nats, and whether it was the most likely token


def foretold(
    base: TextModel, rows: Sequence[list[int]], firsts: Sequence[int] | None = None
) -> list[list[Foretold]]:
    """Log-probabilities of each row's ids, starting at its position in `firsts` (at least 1; default 1)."""
    firsts = [1] * len(rows) if firsts is None else firsts
    found: list[list[Foretold]] = [[] for _ in rows]
    for places in _batches(base, rows, firsts):
        if len(places) == 1 and len(rows[places[0]]) - firsts[places[0]] > room_for(base):
            found[places[0]] = _in_parts(base, rows[places[0]], firsts[places[0]])
            continue
        some = _together(base, [rows[at] for at in places], [firsts[at] for at in places])
        for at, row in zip(places, some, strict=True):
            found[at] = row
    return found


def right_padded(rows: Sequence[list[int]]) -> Tensor:
    """(n, longest) int64, padded on the right with zeros, which causal attention never sees."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.tensor(row, dtype=torch.long)
    return ids


def chosen(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-softmax of logits (…, vocabulary) at ids (…): (…) float32."""
    logits = logits.float()
    picked: Tensor = logits.gather(-1, ids[..., None])[..., 0] - logits.logsumexp(-1)
    return picked


def _batches(base: TextModel, rows: Sequence[list[int]], firsts: Sequence[int]) -> Iterator[list[int]]:
    """Batches of row indices, longest rows first, as many per batch as fit; rows without positions to score
    are skipped."""
    most, room = _TOKENS.get(base.device.type, _TOKENS["cpu"]), room_for(base)
    batch: list[int] = []
    wanted = 0
    for at in sorted(range(len(rows)), key=lambda at: (-len(rows[at]), at)):
        own = len(rows[at]) - firsts[at]
        if own <= 0:
            continue
        tokens = (len(batch) + 1) * len(rows[batch[0] if batch else at])
        if batch and (len(batch) == _ROWS or tokens > most or wanted + own > room):
            yield batch
            batch, wanted = [], 0
        batch.append(at)
        wanted += own
    if batch:
        yield batch


def room_for(base: TextModel) -> int:
    """Number of positions whose logits fit in one pass."""
    numbers = _LOGITS.get(base.device.type, _LOGITS["cpu"])
    return max(_SHORTEST, numbers // int(base.model.config.vocab_size))


@torch.no_grad()
def _together(base: TextModel, rows: Sequence[list[int]], firsts: Sequence[int]) -> list[list[Foretold]]:
    ids = right_padded(rows).to(base.device)
    foretelling = torch.zeros_like(ids, dtype=torch.bool)
    for at, (row, first) in enumerate(zip(rows, firsts, strict=True)):
        foretelling[at, first - 1 : len(row) - 1] = True
    logits = logits_at(base, ids, foretelling)
    pairs = iter(_pairs(logits, ids[:, 1:][foretelling[:, :-1]]))
    return [[next(pairs) for _ in row[first:]] for row, first in zip(rows, firsts, strict=True)]


@torch.no_grad()
def _in_parts(base: TextModel, row: list[int], first: int) -> list[Foretold]:
    """Score a row whose logits do not fit at once, in chunks with a key-value cache."""
    ids = torch.tensor([row], device=base.device)
    found: list[Foretold] = []
    past = None
    start = 0
    while start < len(row) - 1:
        silent = start < first - 1
        size = _TOKENS.get(base.device.type, _TOKENS["cpu"]) if silent else room_for(base)
        end = min(start + size, first - 1 if silent else len(row) - 1)
        out = base.model(
            input_ids=ids[:, start:end],
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1 if silent else 0,
        )
        past = out.past_key_values
        if not silent:
            found += _pairs(out.logits[0], ids[0, start + 1 : end + 1])
        start = end
    return found


def _pairs(logits: Tensor, wanted: Tensor) -> list[Foretold]:
    likeliest = (logits.argmax(-1) == wanted).tolist()
    return list(zip(chosen(logits, wanted).tolist(), likeliest, strict=True))
