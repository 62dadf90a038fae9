"""Gap recovered: what share of natively training an adapter on the target a moved one keeps [003, §4].

    (score − base) / (oracle − base)

with `base` the target alone and `oracle` an adapter that was trained on the target. 1 is as good as native, 0
no better than nothing, negative worse. Any score will do that is better when higher: accuracy, minus nats.
"""

from __future__ import annotations

from transfer.errors import GapTooSmall

MIN_GAP = 0.05


def gap_recovered(score: float, *, base: float, oracle: float) -> float:
    """The share. Raises GapTooSmall when |oracle − base| < 0.05: the quotient would be noise."""
    if abs(oracle - base) < MIN_GAP:
        raise GapTooSmall(
            f"Training on the target changes the score by {oracle - base:+.3f} only; "
            f"at least {MIN_GAP} is needed to speak of a share of it.",
            hint="Use a task that the target cannot do yet, or train the oracle longer.",
        )
    return (score - base) / (oracle - base)
