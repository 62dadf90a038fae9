"""How alike each layer of one base is to each layer of the other, on paired text [000, §4.2]."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rebase.evidence.cka import (
    MIN_ROWS,
    LayerSimilarity,
    biased_cka,
    compute_coverage,
    find_monotone_map,
    find_outliers,
)
from workers.activations.taps import layers_at
from workers.activations.text import PairedText, Passage
from workers.bases import Bases

SIMILARITY_VERSION = 1
POSITIONS = 2048  # with twice as many, SmolLM2-135M → Gemma-3-270M changes by 0.014 a cell, at most 0.05
BATCH_ROWS = 256


@dataclass(frozen=True, slots=True)
class Similarity:
    """`matrix`: (source layers, target layers) debiased CKA, float64. `biased`: the usual estimator at the
    chosen map's entries, on one batch, for comparison."""

    matrix: Tensor
    biased: tuple[float, ...]
    positions: int

    @property
    def layers(self) -> tuple[int, ...]:
        """Target layer → source layer."""
        return find_monotone_map(self.matrix)

    def covered(self, threshold: float) -> float:
        """Share of target layers whose best source layer is above the threshold."""
        return compute_coverage(self.matrix, threshold)


def measure(bases: Bases, text: PairedText, step: Callable[[int, int], None]) -> Similarity:
    """One pass over the first positions of the text, with both bases or one after the other."""
    passages = list(_first(text, POSITIONS))
    if bases.together:
        source, target = bases.model("source"), bases.model("target")
        pairs = ((layers_at(source, "source", p), layers_at(target, "target", p)) for p in passages)
        return _summed(pairs, len(passages), step)
    ours = [[rows.cpu() for rows in layers_at(bases.model("source"), "source", p)] for p in passages]
    model = bases.model("target")
    theirs = ([rows.cpu() for rows in layers_at(model, "target", p)] for p in passages)
    return _summed(zip(ours, theirs, strict=True), len(passages), step)


def _first(text: PairedText, most: int) -> Iterator[Passage]:
    found = 0
    for passage in text.passages:
        if found >= most:
            return
        found += passage.positions
        yield passage


def _summed(
    pairs: Iterator[tuple[list[Tensor], list[Tensor]]] | zip[tuple[list[Tensor], list[Tensor]]],
    total: int,
    step: Callable[[int, int], None],
) -> Similarity:
    sums: LayerSimilarity | None = None
    keep: tuple[list[Tensor], list[Tensor]] = ([], [])
    waiting: tuple[list[list[Tensor]], list[list[Tensor]]] = ([], [])
    last: tuple[list[Tensor], list[Tensor]] = ([], [])
    rows = positions = 0
    for done, (ours, theirs) in enumerate(pairs):
        step(done, total)
        waiting[0].append(ours)
        waiting[1].append(theirs)
        rows += ours[0].shape[0]
        if rows < BATCH_ROWS and done + 1 < total:
            continue
        if rows < MIN_ROWS:
            break
        batch = tuple([torch.cat(layer) for layer in zip(*side, strict=True)] for side in waiting)
        if sums is None:
            sums = LayerSimilarity(len(batch[0]), len(batch[1]))
            keep = (
                [~find_outliers(layer) for layer in batch[0]],
                [~find_outliers(layer) for layer in batch[1]],
            )
        last = (
            [layer[:, mask] for layer, mask in zip(batch[0], keep[0], strict=True)],
            [layer[:, mask] for layer, mask in zip(batch[1], keep[1], strict=True)],
        )
        sums.add(*last)
        positions += rows
        waiting, rows = ([], []), 0
    step(total, total)
    if sums is None:
        return Similarity(torch.zeros(0, 0), (), 0)
    matrix = sums.compute_matrix()
    biased = tuple(biased_cka(last[0][s], last[1][t]) for t, s in enumerate(find_monotone_map(matrix)))
    return Similarity(matrix, biased, positions)
