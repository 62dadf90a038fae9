"""Where an adapter speaks: tokens that it makes likelier, found on one tokenisation and used on another.

The score of a written token is log P(S+Δ) − log P(S) [2510.04682]. A token of the other tokenizer takes each
score by the share of that token's characters which it covers, so that a text's scores keep their sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Span = tuple[int, int]


def spread(spans: Sequence[Span], scores: Sequence[float], others: Sequence[Span]) -> list[float]:
    """Scores of the tokens at `others`. Spans are (start, end) in one text, in order; one of no width gives
    and takes nothing."""
    found = [0.0] * len(others)
    at = 0
    for (start, end), score in zip(spans, scores, strict=True):
        while at < len(others) and others[at][1] <= start:
            at += 1
        for place in range(at, len(others)):
            left, right = others[place]
            if left >= end and right > left:
                break
            common = min(end, right) - max(start, left)
            if common > 0:
                found[place] += score * common / (end - start)
    return found


def threshold(scores: Sequence[float], share: float) -> float:
    """The score from which on a token is among the given share of highest ones; −∞ for all of them."""
    count = math.ceil(share * len(scores))
    if count >= len(scores):
        return -math.inf
    return sorted(scores, reverse=True)[count - 1]
