"""Samples tokenized for the target model: loss masks, batches, and losses on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rebase.methods.base_params import SamplingParams
from rebase.models.causal_lm import CausalLM, compute_logits_at
from rebase.models.generation import encode_with_bos, get_max_positions
from rebase.models.logprobs import gather_logprobs, get_max_logit_positions, pad_right
from rebase.training.logit_shift import TargetDistribution, compute_shift_loss, compute_target_distribution
from rebase.training.losses import SharedTokenIds
from rebase.training.samples import Sample

Span = tuple[int, int]


def project_scores(
    spans: Sequence[Span], scores: Sequence[float], target_spans: Sequence[Span]
) -> list[float]:
    """Project token scores onto the tokens at `target_spans`, by character overlap.

    Spans are (start, end) in the same text, in order; empty spans neither give nor receive a score.
    """
    projected = [0.0] * len(target_spans)
    first = 0
    for (start, end), score in zip(spans, scores, strict=True):
        while first < len(target_spans) and target_spans[first][1] <= start:
            first += 1
        for index in range(first, len(target_spans)):
            left, right = target_spans[index]
            if left >= end and right > left:
                break
            overlap = min(end, right) - max(start, left)
            if overlap > 0:
                projected[index] += score * overlap / (end - start)
    return projected


def score_threshold(scores: Sequence[float], share: float) -> float:
    """The lowest score within the top `share` of all scores; −∞ if that is all of them."""
    count = math.ceil(share * len(scores))
    if count >= len(scores):
        return -math.inf
    return sorted(scores, reverse=True)[count - 1]


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """A sample as n target token `ids`.

    `generated_mask`, `loss_mask`: which of ids[1:] were generated, and which count in the loss. A final EOS
    counts in the loss but not as generated, since it covers no text. `num_bytes`: length of the generated
    text. `target_distribution`: set where the shift is trained.
    """

    sample: Sample
    ids: list[int]
    spans: list[tuple[int, int]]
    generated_mask: list[bool]
    loss_mask: list[bool]
    num_bytes: int
    target_distribution: TargetDistribution | None = None


def encode_samples(
    target: CausalLM, samples: Sequence[Sample], params: SamplingParams
) -> list[EncodedSample]:
    """One row per sample, truncated to the target's context length."""
    encodings = [encode_with_bos(target, sample.text, get_max_positions(target) - 1) for sample in samples]
    scores = [
        project_scores(sample.spans, sample.scores, found.offsets)
        for sample, found in zip(samples, encodings, strict=True)
    ]
    generated_masks = [
        [end > max(sample.prompt, start) for start, end in found.offsets]
        for sample, found in zip(samples, encodings, strict=True)
    ]
    generated_scores = [
        score
        for row, mine in zip(scores, generated_masks, strict=True)
        for score, its in zip(row, mine, strict=True)
        if its
    ]
    min_score = score_threshold(generated_scores, params.keep if params.filter == "speaks" else 1.0)
    rows = []
    for sample, found, row, mine in zip(samples, encodings, scores, generated_masks, strict=True):
        ids, spans = list(found.ids), list(found.offsets)
        loss_mask = [its and score >= min_score for score, its in zip(row, mine, strict=True)]
        end = spans[-1][1] if spans else 0
        if sample.ended and target.eos_ids and end == len(sample.text):
            ids.append(target.eos_ids[0])
            spans.append((len(sample.text), len(sample.text)))
            loss_mask.append(True)
        generated_mask = [*mine, *[False] * (len(ids) - len(mine))]
        rows.append(
            EncodedSample(
                sample,
                ids,
                spans,
                generated_mask[1:],
                loss_mask[1:],
                len(sample.text[sample.prompt : end].encode()),
            )
        )
    return rows


def add_shift_targets(
    target: CausalLM, rows: Sequence[EncodedSample], shared_tokens: SharedTokenIds
) -> list[EncodedSample]:
    """The rows with their target distributions. The target must not have an update applied."""
    return [
        replace(
            row,
            target_distribution=compute_target_distribution(
                target, row.ids, row.spans, row.sample.shift, shared_tokens
            ),
        )
        if row.sample.shift
        else row
        for row in rows
    ]


def split_train_val(
    rows: Sequence[EncodedSample], held_out: float
) -> tuple[list[EncodedSample], list[EncodedSample]]:
    """Training and held-out rows, at least one of each.

    Neighbouring samples share prompts, so held-out rows are evenly spaced instead of taken from the end.
    """
    count = min(max(round(held_out * len(rows)), 1), len(rows) - 1)
    held_out_indices = {at * len(rows) // count for at in range(count)}
    return (
        [row for at, row in enumerate(rows) if at not in held_out_indices],
        [row for at, row in enumerate(rows) if at in held_out_indices],
    )


def collate(rows: Sequence[EncodedSample], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Ids (n, longest), and the generated and loss masks as float32 weights (n, longest − 1)."""
    ids = pad_right([row.ids for row in rows])
    generated_mask, loss_mask = torch.zeros(2, len(rows), ids.shape[1] - 1)
    for at, row in enumerate(rows):
        generated_mask[at, : len(row.generated_mask)] = torch.tensor(row.generated_mask, dtype=torch.float32)
        loss_mask[at, : len(row.loss_mask)] = torch.tensor(row.loss_mask, dtype=torch.float32)
    return ids.to(device), generated_mask.to(device), loss_mask.to(device)


@dataclass(frozen=True, slots=True)
class Losses:
    """`per_byte`: nats per byte of generated text; `per_token`: nats per token in the loss mask."""

    per_byte: float
    per_token: float


@torch.no_grad()
def compute_losses(target: CausalLM, rows: Sequence[EncodedSample]) -> Losses:
    """Losses of the model on the rows, in its current state."""
    generated_nats = loss_nats = loss_tokens = 0.0
    for batch in iter_batches(target, rows):
        ids, generated_mask, weights = collate(batch, target.device)
        scored = (generated_mask + weights) > 0
        nats = -compute_masked_logprobs(target, ids, scored)
        generated_nats += float((nats * generated_mask[scored]).sum())
        loss_nats += float((nats * weights[scored]).sum())
        loss_tokens += float(weights.sum())
    return Losses(
        generated_nats / max(sum(row.num_bytes for row in rows), 1), loss_nats / max(loss_tokens, 1.0)
    )


def iter_loss_parts(
    target: CausalLM,
    rows: Sequence[EncodedSample],
    shift_weight: float = 0.0,
    shared_tokens: SharedTokenIds | None = None,
) -> Iterator[Tensor]:
    """Mean cross-entropy over the loss mask, in parts whose logits fit into memory.

    With `shared_tokens`, adds `shift_weight` times the mean KL divergence from the target distributions.
    """
    total = max(sum(sum(row.loss_mask) for row in rows), 1)
    position_count = max(
        sum(row.target_distribution.positions.numel() for row in rows if row.target_distribution), 1
    )
    for batch in iter_batches(target, rows, all_positions=shared_tokens is not None):
        ids, _, loss_mask = collate(batch, target.device)
        if shared_tokens is None:
            yield -compute_masked_logprobs(target, ids, loss_mask > 0).sum() / total
            continue
        logits = target.model(input_ids=ids, use_cache=False).logits
        loss = -(gather_logprobs(logits[:, :-1], ids[:, 1:]) * loss_mask).sum() / total
        for row_logits, row in zip(logits, batch, strict=True):
            if row.target_distribution:
                loss = (
                    loss
                    + shift_weight
                    * compute_shift_loss(row_logits, row.target_distribution, shared_tokens)
                    / position_count
                )
        yield loss


@torch.no_grad()
def compute_mean_shift_loss(
    target: CausalLM, rows: Sequence[EncodedSample], shared_tokens: SharedTokenIds
) -> float:
    """Mean KL divergence (nats per position) of the model from the target distributions."""
    position_count = max(
        sum(row.target_distribution.positions.numel() for row in rows if row.target_distribution), 1
    )
    total = 0.0
    for row in rows:
        if row.target_distribution:
            ids = torch.tensor([row.ids], device=target.device)
            logits = target.model(input_ids=ids, use_cache=False).logits[0]
            total += float(compute_shift_loss(logits, row.target_distribution, shared_tokens))
    return total / position_count


def compute_masked_logprobs(target: CausalLM, ids: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities of the ids[:, 1:] selected by `mask` (n, length − 1), in order."""
    last_column = mask.new_zeros(len(ids), 1)
    return gather_logprobs(
        compute_logits_at(target, ids, torch.cat([mask, last_column], dim=1)), ids[:, 1:][mask]
    )


def iter_batches(
    target: CausalLM, rows: Sequence[EncodedSample], *, all_positions: bool = False
) -> Iterator[Sequence[EncodedSample]]:
    """Batches of rows whose scored logits (or all logits, with `all_positions`) fit into memory."""
    budget = get_max_logit_positions(target)
    batch: list[EncodedSample] = []
    used = 0
    for row in rows:
        scored = (own or kept for own, kept in zip(row.generated_mask, row.loss_mask, strict=True))
        size = len(row.ids) if all_positions else sum(scored)
        if batch and used + size > budget:
            yield batch
            batch, used = [], 0
        batch.append(row)
        used += size
    if batch:
        yield batch
