"""How an adapter shifts the source's next-token distribution in a sample, and what the target should match.

The shift is stored with the sample, so that training the target, or resuming it, does not need the source.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rebase.errors import IncompatiblePair
from rebase.evidence.inputs import LoadedInputs
from rebase.lora.low_rank import LowRank, Site
from rebase.methods.findings import MIN_SHARED_TOKENS
from rebase.models.causal_lm import CausalLM, Encoding
from rebase.models.empty_model import build_model_config
from rebase.training.losses import (
    SharedTokenIds,
    kl_divergence,
    restricted_logprobs,
    select_shared_ids,
    shifted_target,
    topk_plus_rest,
)
from rebase.training.teacher_logits import compute_teacher_logits
from rebase.training.vocab_chunks import compute_final_states, compute_listed_logprobs


def require_shared_tokens(inputs: LoadedInputs) -> SharedTokenIds:
    """Shared tokens of both bases. Raises IncompatiblePair if there are too few."""
    tokens = inputs.vocabularies
    sizes = (
        int(build_model_config(base.config.get("text_config") or base.config).vocab_size)
        for base in (inputs.source, inputs.target)
    )
    shared_tokens = select_shared_ids(tokens, *sizes) if tokens is not None else None
    if shared_tokens is None or shared_tokens.size < MIN_SHARED_TOKENS:
        raise IncompatiblePair(
            f"The two vocabularies share {(shared_tokens.size if shared_tokens else 0)} tokens on which "
            f"predictions can be compared; {MIN_SHARED_TOKENS} are needed.",
            hint="Use a method that does not compare predictions: activation, or distill with shift=0.",
            pointer="/method",
        )
    return shared_tokens


MAX_LISTED_TOKENS = 32  # shared tokens stored individually per position


@dataclass(frozen=True, slots=True)
class TeacherShift:
    """Predictions after the character offsets `ends` (n) of a text: `columns` (n, k) int32, `teacher` and
    `source` (n, k + 1) float32, as in `rebase.training.teacher_logits`, each in base64."""

    ends: list[int]
    columns: str
    teacher: str
    source: str


@dataclass(frozen=True, slots=True)
class TargetDistribution:
    """What the target should predict: `positions` (n,), `columns` (n, k) and `logprobs` (n, k + 1)."""

    positions: Tensor
    columns: Tensor
    logprobs: Tensor


def compute_teacher_shift(
    source: CausalLM,
    deltas: Mapping[Site, LowRank],
    encoded: Encoding,
    prompt_length: int,
    shared_tokens: SharedTokenIds,
) -> TeacherShift | None:
    """The adapter's shift in the text after its first `prompt_length` characters; None if no position is
    left."""
    length = encoded.offsets[-1][1]
    ends = {
        end: at
        for at, (start, end) in enumerate(encoded.offsets)
        if at > 0 and start < end < length and end >= prompt_length
    }
    if not ends:
        return None
    device = source.device
    ids, at = torch.tensor(encoded.ids, device=device), torch.tensor(list(ends.values()), device=device)
    teacher_logits = compute_teacher_logits(
        source, deltas, ids, at, shared_tokens.source.to(device), MAX_LISTED_TOKENS, 1.0
    )
    return TeacherShift(
        list(ends),
        *(
            _encode_array(rows)
            for rows in (teacher_logits.columns, teacher_logits.teacher, teacher_logits.source)
        ),
    )


@torch.no_grad()
def compute_target_distribution(
    target: CausalLM,
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    shift: TeacherShift,
    shared_tokens: SharedTokenIds,
) -> TargetDistribution | None:
    """The target's own distribution with the shift applied, where tokens of both models end together."""
    position_by_end = {end: at for at, (start, end) in enumerate(offsets) if at > 0 and end > start}
    matches = [(row, position_by_end[end]) for row, end in enumerate(shift.ends) if end in position_by_end]
    if not matches:
        return None
    rows, at = (torch.tensor(side) for side in zip(*matches, strict=True))
    count, device = len(shift.ends), target.device
    columns = _decode_array(shift.columns, torch.int32, count)[rows].long().to(device)
    teacher, source = (_decode_array(x, torch.float32, count)[rows] for x in (shift.teacher, shift.source))
    states = compute_final_states(target, torch.tensor(ids, device=device))[at.to(device)]
    base_logprobs = compute_listed_logprobs(target, states, shared_tokens.target.to(device), columns, 1.0)
    return TargetDistribution(
        at.to(device), columns, shifted_target(base_logprobs, teacher.to(device), source.to(device))
    )


def compute_shift_loss(
    logits: Tensor, distribution: TargetDistribution, shared_tokens: SharedTokenIds
) -> Tensor:
    """KL divergence in nats, summed over the positions; `logits`: (length, V) of one row."""
    logprobs = topk_plus_rest(
        restricted_logprobs(logits[distribution.positions], shared_tokens.target.to(logits.device)),
        distribution.columns,
    )
    return kl_divergence(distribution.logprobs, logprobs).sum()


def _encode_array(rows: Tensor) -> str:
    return base64.b64encode(rows.contiguous().numpy().tobytes()).decode()


def _decode_array(text: str, dtype: torch.dtype, count: int) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=dtype).reshape(count, -1)
