"""Similarity of every layer of one base to every layer of the other on paired text [000, §4.2]."""

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
from rebase.evidence.hooks import capture_layers
from rebase.evidence.paired_text import PairedText, Passage
from rebase.models.base_pair import BasePair

SIMILARITY_VERSION = 1
MAX_POSITIONS = 2048  # doubling it changes SmolLM2-135M → Gemma-3-270M by 0.014 per entry, at most 0.05
BATCH_ROWS = 256


@dataclass(frozen=True, slots=True)
class SimilarityResult:
    """`matrix`: (source layers, target layers) debiased CKA, float64. `biased`: the standard estimator for
    the layer pairs of the map, on one batch, for comparison."""

    matrix: Tensor
    biased: tuple[float, ...]
    num_positions: int

    @property
    def layers(self) -> tuple[int, ...]:
        """Target layer → source layer."""
        return find_monotone_map(self.matrix)

    def compute_coverage(self, threshold: float) -> float:
        """Share of target layers whose best source layer has a similarity above the threshold."""
        return compute_coverage(self.matrix, threshold)


def measure_similarity(
    models: BasePair, text: PairedText, report_progress: Callable[[int, int], None]
) -> SimilarityResult:
    """One pass over the first positions of the text, with both bases in memory or one after the other."""
    passages = list(_take_passages(text, MAX_POSITIONS))
    if models.fit_together:
        source, target = models.get_model("source"), models.get_model("target")
        pairs = ((capture_layers(source, "source", p), capture_layers(target, "target", p)) for p in passages)
        return _accumulate(pairs, len(passages), report_progress)
    source_layers = [
        [rows.cpu() for rows in capture_layers(models.get_model("source"), "source", p)] for p in passages
    ]
    model = models.get_model("target")
    target_layers = ([rows.cpu() for rows in capture_layers(model, "target", p)] for p in passages)
    return _accumulate(zip(source_layers, target_layers, strict=True), len(passages), report_progress)


def _take_passages(text: PairedText, max_positions: int) -> Iterator[Passage]:
    num_positions = 0
    for passage in text.passages:
        if num_positions >= max_positions:
            return
        num_positions += passage.num_positions
        yield passage


def _accumulate(
    pairs: Iterator[tuple[list[Tensor], list[Tensor]]] | zip[tuple[list[Tensor], list[Tensor]]],
    total: int,
    report_progress: Callable[[int, int], None],
) -> SimilarityResult:
    sums: LayerSimilarity | None = None
    masks: tuple[list[Tensor], list[Tensor]] = ([], [])
    pending: tuple[list[list[Tensor]], list[list[Tensor]]] = ([], [])
    last_batch: tuple[list[Tensor], list[Tensor]] = ([], [])
    rows = positions = 0
    for done, (source_layers, target_layers) in enumerate(pairs):
        report_progress(done, total)
        pending[0].append(source_layers)
        pending[1].append(target_layers)
        rows += source_layers[0].shape[0]
        if rows < BATCH_ROWS and done + 1 < total:
            continue
        if rows < MIN_ROWS:
            break
        batch = tuple([torch.cat(layer) for layer in zip(*side, strict=True)] for side in pending)
        if sums is None:
            sums = LayerSimilarity(len(batch[0]), len(batch[1]))
            masks = (
                [~find_outliers(layer) for layer in batch[0]],
                [~find_outliers(layer) for layer in batch[1]],
            )
        last_batch = (
            [layer[:, mask] for layer, mask in zip(batch[0], masks[0], strict=True)],
            [layer[:, mask] for layer, mask in zip(batch[1], masks[1], strict=True)],
        )
        sums.add(*last_batch)
        positions += rows
        pending, rows = ([], []), 0
    report_progress(total, total)
    if sums is None:
        return SimilarityResult(torch.zeros(0, 0), (), 0)
    matrix = sums.compute_matrix()
    biased = tuple(
        biased_cka(last_batch[0][s], last_batch[1][t]) for t, s in enumerate(find_monotone_map(matrix))
    )
    return SimilarityResult(matrix, biased, positions)
