"""Which positions of two tokenisations of one text have read the same text [004, §3.2].

A causal model's state at a token knows the text up to that token's end. Two positions are a pair when their
tokens end at the same place of the text, however differently the words before were cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PairedPositions:
    """Token positions on either side, equally many, rising. Coverages: the paired share of those tokens that
    stand for text."""

    source: Tensor
    target: Tensor
    source_coverage: float
    target_coverage: float


def pair_positions(source: Sequence[tuple[int, int]], target: Sequence[tuple[int, int]]) -> PairedPositions:
    """Pairs from the (start, end) offsets of each token in the text.

    Tokens of no width are special ones (BOS, EOS) and stand for no text. Several tokens with one end are the
    bytes of one character: only the last has read all of it.
    """
    ends_s, count_s = _index_by_end(source)
    ends_t, count_t = _index_by_end(target)
    common = sorted(ends_s.keys() & ends_t.keys())
    return PairedPositions(
        torch.tensor([ends_s[end] for end in common], dtype=torch.long),
        torch.tensor([ends_t[end] for end in common], dtype=torch.long),
        len(common) / count_s if count_s else 0.0,
        len(common) / count_t if count_t else 0.0,
    )


def _index_by_end(offsets: Sequence[tuple[int, int]]) -> tuple[dict[int, int], int]:
    """End → last position with that end, and how many positions stand for text."""
    position_by_end: dict[int, int] = {}
    count = 0
    for position, (start, end) in enumerate(offsets):
        if end > start:
            position_by_end[end] = position
            count += 1
    return position_by_end, count
