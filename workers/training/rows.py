"""Samples as the target reads them: its own tokens, which of them it is to learn, and its losses on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rebase.methods.base_params import SamplingParams
from rebase.training.losses import SharedTokenIds
from rebase.training.token_selection import project_scores, score_threshold
from workers.foretold import chosen, right_padded, room_for
from workers.models import TextModel, logits_at
from workers.training.samples import Sample
from workers.training.sampling import context, opened
from workers.training.shift import Wanted, missed, wanted_of


@dataclass(frozen=True, slots=True)
class Row:
    """`ids`: n tokens; `written`, `kept`: of ids[1:], which were written and which are learnt. An EOS behind
    the text is learnt, but is not `written`: it stands for no text. `bytes`: of the written text. `wanted`:
    where the shift is learnt."""

    sample: Sample
    ids: list[int]
    spans: list[tuple[int, int]]
    written: list[bool]
    kept: list[bool]
    bytes: int
    wanted: Wanted | None = None


def rows_of(target: TextModel, samples: Sequence[Sample], params: SamplingParams) -> list[Row]:
    """One row a sample, cut where the target's context ends."""
    read = [opened(target, sample.text, context(target) - 1) for sample in samples]
    scores = [
        project_scores(sample.spans, sample.scores, found.offsets)
        for sample, found in zip(samples, read, strict=True)
    ]
    own = [
        [end > max(sample.prompt, start) for start, end in found.offsets]
        for sample, found in zip(samples, read, strict=True)
    ]
    said = [
        score
        for row, mine in zip(scores, own, strict=True)
        for score, its in zip(row, mine, strict=True)
        if its
    ]
    least = score_threshold(said, params.keep if params.filter == "speaks" else 1.0)
    rows = []
    for sample, found, row, mine in zip(samples, read, scores, own, strict=True):
        ids, spans = list(found.ids), list(found.offsets)
        kept = [its and score >= least for score, its in zip(row, mine, strict=True)]
        end = spans[-1][1] if spans else 0
        if sample.ended and target.eos and end == len(sample.text):
            ids.append(target.eos[0])
            spans.append((len(sample.text), len(sample.text)))
            kept.append(True)
        own_here = [*mine, *[False] * (len(ids) - len(mine))]
        rows.append(
            Row(sample, ids, spans, own_here[1:], kept[1:], len(sample.text[sample.prompt : end].encode()))
        )
    return rows


def shifted(target: TextModel, rows: Sequence[Row], common: SharedTokenIds) -> list[Row]:
    """The same with what the shift asks of the target, which must be untouched now."""
    return [
        replace(row, wanted=wanted_of(target, row.ids, row.spans, row.sample.shift, common))
        if row.sample.shift
        else row
        for row in rows
    ]


def divided(rows: Sequence[Row], held_out: float) -> tuple[list[Row], list[Row]]:
    """Those to fit and those to measure on, one at least of either.

    Samples that were written side by side share prompts; every so-manieth is held out, not the last ones.
    """
    count = min(max(round(held_out * len(rows)), 1), len(rows) - 1)
    chosen_rows = {at * len(rows) // count for at in range(count)}
    return (
        [row for at, row in enumerate(rows) if at not in chosen_rows],
        [row for at, row in enumerate(rows) if at in chosen_rows],
    )


def stacked(rows: Sequence[Row], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Ids (n, longest), and as float32 weights (n, longest − 1) what was written and what is learnt."""
    ids = right_padded([row.ids for row in rows])
    written, kept = torch.zeros(2, len(rows), ids.shape[1] - 1)
    for at, row in enumerate(rows):
        written[at, : len(row.written)] = torch.tensor(row.written, dtype=torch.float32)
        kept[at, : len(row.kept)] = torch.tensor(row.kept, dtype=torch.float32)
    return ids.to(device), written.to(device), kept.to(device)


@dataclass(frozen=True, slots=True)
class Losses:
    """`per_byte`: nats of all that was written by its bytes; `kept`: nats per token that is learnt."""

    per_byte: float
    kept: float


@torch.no_grad()
def losses(target: TextModel, rows: Sequence[Row]) -> Losses:
    """How well the model, as it now is, foretells the rows."""
    whole = kept = learnt = 0.0
    for part in split(target, rows):
        ids, written, weights = stacked(part, target.device)
        looked_at = (written + weights) > 0
        nats = -logs(target, ids, looked_at)
        whole += float((nats * written[looked_at]).sum())
        kept += float((nats * weights[looked_at]).sum())
        learnt += float(weights.sum())
    return Losses(whole / max(sum(row.bytes for row in rows), 1), kept / max(learnt, 1.0))


def parts(
    target: TextModel, rows: Sequence[Row], shift: float = 0.0, common: SharedTokenIds | None = None
) -> Iterator[Tensor]:
    """Mean cross-entropy of the tokens that are learnt, in parts whose logits fit; and `shift` times the mean
    divergence from what is wanted at the places that have it."""
    total = max(sum(sum(row.kept) for row in rows), 1)
    places = max(sum(row.wanted.at.numel() for row in rows if row.wanted), 1)
    for part in split(target, rows, whole=common is not None):
        ids, _, kept = stacked(part, target.device)
        if common is None:
            yield -logs(target, ids, kept > 0).sum() / total
            continue
        logits = target.model(input_ids=ids, use_cache=False).logits
        loss = -(chosen(logits[:, :-1], ids[:, 1:]) * kept).sum() / total
        for own, row in zip(logits, part, strict=True):
            if row.wanted:
                loss = loss + shift * missed(own, row.wanted, common) / places
        yield loss


@torch.no_grad()
def shift_missed(target: TextModel, rows: Sequence[Row], common: SharedTokenIds) -> float:
    """Nats per place from what the shift asks of the model, as it now is."""
    places = max(sum(row.wanted.at.numel() for row in rows if row.wanted), 1)
    whole = 0.0
    for row in rows:
        if row.wanted:
            ids = torch.tensor([row.ids], device=target.device)
            logits = target.model(input_ids=ids, use_cache=False).logits[0]
            whole += float(missed(logits, row.wanted, common))
    return whole / places


def logs(target: TextModel, ids: Tensor, foretold: Tensor) -> Tensor:
    """log P of those ids[:, 1:] that `foretold` (n, length − 1) names, in order."""
    last = foretold.new_zeros(len(ids), 1)
    return chosen(logits_at(target, ids, torch.cat([foretold, last], dim=1)), ids[:, 1:][foretold])


def split(target: TextModel, rows: Sequence[Row], *, whole: bool = False) -> Iterator[Sequence[Row]]:
    """Rows side by side as long as the logits that are looked at, or all of them, have room."""
    room = room_for(target)
    part: list[Row] = []
    used = 0
    for row in rows:
        looked_at = (own or kept for own, kept in zip(row.written, row.kept, strict=True))
        size = len(row.ids) if whole else sum(looked_at)
        if part and used + size > room:
            yield part
            part, used = [], 0
        part.append(row)
        used += size
    if part:
        yield part
