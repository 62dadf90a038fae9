"""The shift that an adapter makes at each place of a written sample, and what it asks of the target there.

Kept with the sample, so that the source is not needed while the target learns, nor by whoever goes on with
it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rebase.lora.low_rank import LowRank, Site
from rebase.training.losses import (
    SharedTokenIds,
    kl_divergence,
    restricted_logprobs,
    shifted_target,
    topk_plus_rest,
)
from workers.models import Encoded, TextModel
from workers.training.heard import listen
from workers.training.logits import final_states, outcomes_of

LISTED = 32  # shared tokens that are kept one by one at a position


@dataclass(frozen=True, slots=True)
class Shift:
    """Behind n places of a text, given by the characters before them (`ends`): `columns` (n, k) int32,
    `teacher` and `source` (n, k + 1) float32, as in `workers.training.heard`, each as base64."""

    ends: list[int]
    columns: str
    teacher: str
    source: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the target should say: at positions `at` (n,), of `columns` (n, k), log-probabilities (n, k +
    1)."""

    at: Tensor
    columns: Tensor
    logs: Tensor


def shift_in(
    source: TextModel, deltas: Mapping[Site, LowRank], encoded: Encoded, prompt: int, common: SharedTokenIds
) -> Shift | None:
    """What the adapter changes in the text behind its first `prompt` characters; None where no place is
    left."""
    length = encoded.offsets[-1][1]
    ends = {
        end: at
        for at, (start, end) in enumerate(encoded.offsets)
        if at > 0 and start < end < length and end >= prompt
    }
    if not ends:
        return None
    device = source.device
    ids, at = torch.tensor(encoded.ids, device=device), torch.tensor(list(ends.values()), device=device)
    heard = listen(source, deltas, ids, at, common.source.to(device), LISTED, 1.0)
    return Shift(list(ends), *(_packed(rows) for rows in (heard.columns, heard.teacher, heard.source)))


@torch.no_grad()
def wanted_of(
    target: TextModel,
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    shift: Shift,
    common: SharedTokenIds,
) -> Wanted | None:
    """The untouched target's own probabilities, moved; where a token of either side ends at one place."""
    places = {end: at for at, (start, end) in enumerate(offsets) if at > 0 and end > start}
    both = [(row, places[end]) for row, end in enumerate(shift.ends) if end in places]
    if not both:
        return None
    rows, at = (torch.tensor(side) for side in zip(*both, strict=True))
    count, device = len(shift.ends), target.device
    columns = _unpacked(shift.columns, torch.int32, count)[rows].long().to(device)
    teacher, source = (_unpacked(x, torch.float32, count)[rows] for x in (shift.teacher, shift.source))
    states = final_states(target, torch.tensor(ids, device=device))[at.to(device)]
    own = outcomes_of(target, states, common.target.to(device), columns, 1.0)
    return Wanted(at.to(device), columns, shifted_target(own, teacher.to(device), source.to(device)))


def missed(logits: Tensor, wanted: Wanted, common: SharedTokenIds) -> Tensor:
    """Nats from what is wanted, summed over its positions: logits (length, V) of one row."""
    said = topk_plus_rest(
        restricted_logprobs(logits[wanted.at], common.target.to(logits.device)), wanted.columns
    )
    return kl_divergence(wanted.logs, said).sum()


def _packed(rows: Tensor) -> str:
    return base64.b64encode(rows.contiguous().numpy().tobytes()).decode()


def _unpacked(text: str, dtype: torch.dtype, count: int) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=dtype).reshape(count, -1)
