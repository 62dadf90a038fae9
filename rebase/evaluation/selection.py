"""Selects the best of several methods on one half of the examples and confirms it on the other half.

The best of many scores is partly luck, so the selection half overestimates the winner. The confirmation half
gives an unbiased estimate; a winner that scores below the target alone there is rejected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

# Four examples per half; with fewer, a single example could decide.
MIN_EXAMPLES_TO_SPLIT = 8

SelectionStatus = Literal["better", "none_fit", "none_better", "not_confirmed"]


@dataclass(frozen=True, slots=True)
class ExampleSplit:
    """Example indices, in ascending order. `is_shared`: too few to split, so both halves are all of them."""

    selection_indices: tuple[int, ...]
    confirmation_indices: tuple[int, ...]
    is_shared: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """`best_index`: the eligible candidate with the highest mean, the first on ties; None if none is
    eligible. `status`: whether to keep it, and if not, why."""

    best_index: int | None
    status: SelectionStatus


def split_examples(count: int, seed: int) -> ExampleSplit:
    """Split `count` examples into random halves; if odd, the selection half gets one more. With fewer than
    eight, both halves are all of them. Raises ValueError without examples."""
    if count < 1:
        raise ValueError("there are no examples to select by")
    all_indices = tuple(range(count))
    if count < MIN_EXAMPLES_TO_SPLIT:
        return ExampleSplit(all_indices, all_indices, True)
    selected = set(np.random.default_rng(seed).permutation(count)[: (count + 1) // 2].tolist())
    selection_indices = tuple(place for place in all_indices if place in selected)
    return ExampleSplit(
        selection_indices, tuple(place for place in all_indices if place not in selected), False
    )


def choose_best(
    baseline: Sequence[float],
    scores: Sequence[Sequence[float]],
    split: ExampleSplit,
    eligible: Sequence[bool] | None = None,
) -> Choice:
    """Choose the candidate to keep. `baseline`: the target's own score for every example; `scores`: each
    candidate's, simplest candidate first, higher is better; `eligible`: which may be kept (None: all).

    It has the highest mean on the selection half. That mean must exceed the target's, and must not be below
    the target's on the confirmation half. Raises ValueError if lengths differ or scores are not finite.
    """
    if eligible is not None and len(eligible) != len(scores):
        raise ValueError("each candidate needs exactly one eligibility flag")
    if any(len(row) != len(baseline) for row in scores):
        raise ValueError("every candidate needs a score for each of the target's examples")
    if not all(math.isfinite(score) for row in (baseline, *scores) for score in row):
        raise ValueError("scores must be finite")
    means = {
        index: compute_mean_at(row, split.selection_indices)
        for index, row in enumerate(scores)
        if eligible is None or eligible[index]
    }
    if not means:
        return Choice(None, "none_fit")
    best_index = max(means, key=means.__getitem__)  # the first on ties
    if means[best_index] <= compute_mean_at(baseline, split.selection_indices):
        return Choice(best_index, "none_better")
    confirmed = compute_mean_at(scores[best_index], split.confirmation_indices) >= compute_mean_at(
        baseline, split.confirmation_indices
    )
    return Choice(best_index, "better" if confirmed else "not_confirmed")


def compute_mean_at(scores: Sequence[float], indices: Sequence[int]) -> float:
    """Mean at some indices; summed exactly, so that the order does not matter."""
    return math.fsum(scores[place] for place in indices) / len(indices)
