"""What a trained target is compared with, at positions that have read the same text [004, §3.3].

Tokenizers differ, so the *next token* differs too. Next-token distributions are compared on the tokens that
both vocabularies spell with the same bytes, and renormalised there; index by index only where these are
the same throughout. Of the m tokens k are looked at one by one, all others together as one outcome:

    distribution (literal)   KL( p_{S+Δ} ‖ p_{T'} )
    shift (ours)             KL( q ‖ p_{T'} ),    q ∝ p_T · p_{S+Δ} / p_S

The literal objective also teaches the target everything in which the source *base* differs from it. The shift
moves the target's own distribution by what the adapter does to the source's, as a product of experts does.
Where the adapter does nothing, q = p_T: the loss and its gradient are zero at the untouched target. Where the
two bases agree, q = p_{S+Δ}.

Shapes: n positions, V tokens of one vocabulary, m shared tokens, k of them listed. Log-probabilities in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rebase.models.vocabulary import SharedTokens

_MIN_LOGPROB = -60.0  # nats: an outcome this rare never happens, and −∞ − (−∞) would be no number


@dataclass(frozen=True, slots=True)
class SharedTokenIds:
    """The tokens that are compared: row by row the same bytes. `source`, `target`: (m,) int64 ids."""

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
    """What two models' logits (of `source_size` and `target_size` numbers) can be compared on.

    Every index where the vocabularies are identical, added tokens too; equal sizes do not make them so.
    """
    if tokens.identical:
        all_ids = torch.arange(min(source_size, target_size))
        return SharedTokenIds(all_ids, all_ids)
    in_range = (tokens.source_ids < source_size) & (tokens.target_ids < target_size)
    return SharedTokenIds(tokens.source_ids[in_range], tokens.target_ids[in_range])


def restricted_logprobs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities among the tokens `ids` (m,) alone: (n, V) logits → (n, m) float32."""
    return (logits[..., ids].float() / temperature).log_softmax(-1)


def compute_shared_mass(logits: Tensor, ids: Tensor) -> Tensor:
    """The probability that the model itself gives to the tokens `ids` together: (n, V) → (n,) float32."""
    logits = logits.float()
    return (logits[..., ids].logsumexp(-1) - logits.logsumexp(-1)).exp()


def topk_columns(teacher: Tensor, source: Tensor, max_columns: int) -> Tensor:
    """Which columns to look at one by one: those likeliest to either, (n, min(most, m)) int64."""
    return torch.maximum(teacher, source).topk(min(max_columns, teacher.shape[-1]), dim=-1).indices


def topk_plus_rest(logprobs: Tensor, columns: Tensor) -> Tensor:
    """(n, m) log-probabilities as those of the listed columns (n, k), and where k < m that of all others
    together: (n, k + 1), else (n, m)."""
    listed = logprobs.gather(-1, columns)
    if columns.shape[-1] == logprobs.shape[-1]:
        return listed.clamp_min(_MIN_LOGPROB)
    others = logprobs.scatter(-1, columns, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([listed, others], dim=-1).clamp_min(_MIN_LOGPROB)


def kl_divergence(target: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(wanted ‖ student) of log-probabilities over the same outcomes, (n,).

    Times τ², so that gradients keep their size when both sides are softened. `wanted` gets no gradient.
    """
    target = target.detach()
    return temperature**2 * (target.exp() * (target - student)).sum(-1)


def shifted_target(base: Tensor, teacher: Tensor, source: Tensor) -> Tensor:
    """log q of the shift: the untouched target's distribution moved by the adapter's effect, renormalised.

    All three: log-probabilities over the same outcomes (n, k) at one temperature.
    """
    return (base + teacher - source).log_softmax(-1)


def projection_loss(teacher_states: Tensor, student_states: Tensor, projection: Tensor) -> Tensor:
    """‖head h_t − h_s‖² / ‖h_s‖² over all positions: `wanted` h_s (n, d_s), `found` h_t (n, d_t), `head`
    (d_s, d_t), trainable. The paper's mean square in units of the teacher's own: 1 is what zeros give. Zero
    where there is nothing to be like.
    """
    total = teacher_states.square().sum()
    residual = (student_states @ projection.T - teacher_states).square().sum()
    return residual / total if float(total) > 0.0 else 0.0 * residual
