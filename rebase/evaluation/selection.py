"""Which of several methods, by what they score on a task: chosen on one half of the examples, confirmed on
the other half.

The best of many scores is too good partly by luck, so the half that chose does not tell what the winner is
worth. The other half, which no candidate was picked on, does; and it has a veto, so that nothing is kept that
scores below the target alone on examples that had no part in its choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

# Four examples on either side; fewer would let one example decide.
MIN_EXAMPLES_TO_SPLIT = 8

SelectionStatus = Literal["better", "none_fit", "none_better", "not_confirmed"]


@dataclass(frozen=True, slots=True)
class ExampleSplit:
    """Places of examples, each in rising order. `shared`: too few to split, so both are all of them."""

    selection_indices: tuple[int, ...]
    confirmation_indices: tuple[int, ...]
    is_shared: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """`best`: the place of the fit candidate with the highest mean, the first of equals; None without any.
    `ending`: whether it is to be kept, and if not, why."""

    best_index: int | None
    status: SelectionStatus


def split_examples(count: int, seed: int) -> ExampleSplit:
    """`count` examples in two halves at random, the choosing one larger by one where they are odd; all of
    them twice when there are fewer than eight. Raises ValueError without examples."""
    if count < 1:
        raise ValueError("there is nothing to choose by: no example")
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
    """The candidate to keep. `alone`: the target's own score of every example; `scores`: each candidate's,
    the simplest candidate first, higher is better; `fit`: which of them may be kept at all (None: all).

    It has the highest mean on the choosing half, which must exceed the target's, and on the confirming half
    a mean that is not below the target's. Raises ValueError for lengths that differ and scores that are no
    numbers.
    """
    if eligible is not None and len(eligible) != len(scores):
        raise ValueError("every candidate is either fit or not")
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
    best_index = max(means, key=means.__getitem__)  # the first of equals
    if means[best_index] <= compute_mean_at(baseline, split.selection_indices):
        return Choice(best_index, "none_better")
    confirmed = compute_mean_at(scores[best_index], split.confirmation_indices) >= compute_mean_at(
        baseline, split.confirmation_indices
    )
    return Choice(best_index, "better" if confirmed else "not_confirmed")


def compute_mean_at(scores: Sequence[float], indices: Sequence[int]) -> float:
    """Of some examples; summed exactly, so that equal scores in another order are equal."""
    return math.fsum(scores[place] for place in indices) / len(indices)
