"""Samples as the target reads them: its own tokens, and which of them it is to learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transfer.catalogue.distill import DistillSettings
from transfer.training.speech import spread, threshold
from workers.models import TextModel
from workers.training.samples import Sample
from workers.training.sampling import context, opened
from workers.training.written import right_padded


@dataclass(frozen=True, slots=True)
class Row:
    """`ids`: n tokens; `written`, `kept`: of ids[1:], which were written and which are learnt. An EOS behind
    the text is learnt, but is not `written`: it stands for no text. `bytes`: of the written text."""

    sample: Sample
    ids: list[int]
    spans: list[tuple[int, int]]
    written: list[bool]
    kept: list[bool]
    bytes: int


def rows_of(target: TextModel, samples: Sequence[Sample], params: DistillSettings) -> list[Row]:
    """One row a sample, cut where the target's context ends."""
    read = [opened(target, sample.text, context(target) - 1) for sample in samples]
    scores = [
        spread(sample.spans, sample.scores, found.offsets)
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
    least = threshold(said, params.keep if params.filter == "speaks" else 1.0)
    rows = []
    for sample, found, row, mine in zip(samples, read, scores, own, strict=True):
        ids, spans = list(found.ids), list(found.offsets)
        kept = [its and score >= least for score, its in zip(row, mine, strict=True)]
        if sample.ended and target.eos:
            ids.append(target.eos[0])
            spans.append((len(sample.text), len(sample.text)))
            kept.append(True)
        own_here = [*mine, *[False] * (len(ids) - len(mine))]
        rows.append(Row(sample, ids, spans, own_here[1:], kept[1:], sample.bytes))
    return rows


def stacked(rows: Sequence[Row], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Ids (n, longest), and as float32 weights (n, longest − 1) what was written and what is learnt."""
    ids = right_padded([row.ids for row in rows])
    written, kept = torch.zeros(2, len(rows), ids.shape[1] - 1)
    for at, row in enumerate(rows):
        written[at, : len(row.written)] = torch.tensor(row.written, dtype=torch.float32)
        kept[at, : len(row.kept)] = torch.tensor(row.kept, dtype=torch.float32)
    return ids.to(device), written.to(device), kept.to(device)
