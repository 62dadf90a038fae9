"""Where an adapter speaks: tokens that it makes likelier, found on one tokenisation and used on another.

The score of a written token is log P(S+Δ) − log P(S) [2510.04682]. A token of the other tokenizer takes each
score by the share of that token's characters which it covers, so that a text's scores keep their sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Span = tuple[int, int]


def project_scores(
    spans: Sequence[Span], scores: Sequence[float], target_spans: Sequence[Span]
) -> list[float]:
    """Scores of the tokens at `others`. Spans are (start, end) in one text, in order; one of no width gives
    and takes nothing."""
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
    """The score from which on a token is among the given share of highest ones; −∞ for all of them."""
    count = math.ceil(share * len(scores))
    if count >= len(scores):
        return -math.inf
    return sorted(scores, reverse=True)[count - 1]
