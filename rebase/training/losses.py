"""Distillation losses across two vocabularies, at positions that follow the same text [004, §3.3].

Tokenizers differ, so the *next token* differs too. Next-token distributions are restricted to the tokens that
both vocabularies spell with the same bytes, and renormalized; ids are compared directly only if the
vocabularies are identical. Of these m tokens, k are compared one by one, and all others as a single outcome:

    distribution (literal)   KL( p_{S+Δ} ‖ p_{T'} )
    shift (ours)             KL( q ‖ p_{T'} ),    q ∝ p_T · p_{S+Δ} / p_S

The literal objective also teaches the target every way in which the source *base* differs from it. The shift
applies the adapter's effect on the source to the target's own distribution, as a product of experts. Where
the adapter does nothing, q = p_T: the loss and its gradient are zero for the unchanged target. Where the two
bases agree, q = p_{S+Δ}.

Shapes: n positions, V tokens of one vocabulary, m shared tokens, k of them listed. Log-probabilities in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rebase.models.vocabulary import SharedTokens

_MIN_LOGPROB = -60.0  # nats; a floor, because −∞ − (−∞) is NaN


@dataclass(frozen=True, slots=True)
class SharedTokenIds:
    """The tokens compared: ids of equal byte strings. `source`, `target`: (m,) int64."""

    source: Tensor
    target: Tensor

    @property
    def size(self) -> int:
        """m."""
        return int(self.source.numel())

    def to(self, device: torch.device) -> SharedTokenIds:
        """The same on another device."""
        return SharedTokenIds(self.source.to(device), self.target.to(device))


def select_shared_ids(tokens: SharedTokens, source_size: int, target_size: int) -> SharedTokenIds:
    """Tokens on which two models' logits (of length `source_size` and `target_size`) can be compared.

    All ids if the vocabularies, including added tokens, are identical; equal sizes are not enough.
    """
    if tokens.identical:
        all_ids = torch.arange(min(source_size, target_size))
        return SharedTokenIds(all_ids, all_ids)
    in_range = (tokens.source_ids < source_size) & (tokens.target_ids < target_size)
    return SharedTokenIds(tokens.source_ids[in_range], tokens.target_ids[in_range])


def restricted_logprobs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities renormalized over the tokens `ids` (m,): (n, V) logits → (n, m) float32."""
    return (logits[..., ids].float() / temperature).log_softmax(-1)


def compute_shared_mass(logits: Tensor, ids: Tensor) -> Tensor:
    """The total probability the model assigns to the tokens `ids`: (n, V) logits → (n,) float32."""
    logits = logits.float()
    return (logits[..., ids].logsumexp(-1) - logits.logsumexp(-1)).exp()


def topk_columns(teacher: Tensor, source: Tensor, max_columns: int) -> Tensor:
    """The columns to list: the most likely under either model, (n, min(max_columns, m)) int64."""
    return torch.maximum(teacher, source).topk(min(max_columns, teacher.shape[-1]), dim=-1).indices


def topk_plus_rest(logprobs: Tensor, columns: Tensor) -> Tensor:
    """Reduce log-probabilities (n, m) to the listed columns (n, k) plus one outcome for all others: (n, k +
    1), or (n, m) if k = m."""
    listed = logprobs.gather(-1, columns)
    if columns.shape[-1] == logprobs.shape[-1]:
        return listed.clamp_min(_MIN_LOGPROB)
    others = logprobs.scatter(-1, columns, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([listed, others], dim=-1).clamp_min(_MIN_LOGPROB)


def kl_divergence(target: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(target ‖ student) of log-probabilities over the same outcomes, (n,).

    Multiplied by τ², so that temperature does not change the scale of gradients. `target` gets no gradient.
    """
    target = target.detach()
    return temperature**2 * (target.exp() * (target - student)).sum(-1)


def shifted_target(base: Tensor, teacher: Tensor, source: Tensor) -> Tensor:
    """log q of the shift: the target's own distribution times the adapter's effect, renormalized.

    All three: log-probabilities over the same outcomes (n, k) at one temperature.
    """
    return (base + teacher - source).log_softmax(-1)


def projection_loss(teacher_states: Tensor, student_states: Tensor, projection: Tensor) -> Tensor:
    """‖P h_t − h_s‖² / ‖h_s‖² over all positions: `teacher_states` h_s (n, d_s), `student_states` h_t (n,
    d_t), `projection` P (d_s, d_t), trainable. The paper's mean squared error relative to the teacher's mean
    square, so all-zero states give 1. Zero if the teacher's states are zero.
    """
    total = teacher_states.square().sum()
    residual = (student_states @ projection.T - teacher_states).square().sum()
    return residual / total if float(total) > 0.0 else 0.0 * residual
