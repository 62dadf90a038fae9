"""What the curve of a training says to whoever may train again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_MIN_RISE = 0.01  # of all that was gained: a loss that rises by less has not risen
_MIN_IMPROVEMENT = 0.02  # of all that was gained: a last stretch that brought less has come to its end


def suggest_more_training(
    curve: Sequence[Mapping[str, float]], text_setting: str, steps_setting: str
) -> str | None:
    """One sentence, or None where nothing speaks for more. `curve`: points with `steps` and `held_out` in
    nats, the first one untrained; `more_text`, `more_steps`: the settings that ask for them."""
    if len(curve) < 2:
        return None
    best = min(range(len(curve)), key=lambda at: curve[at]["held_out"])
    initial, lowest, final = (curve[at]["held_out"] for at in (0, best, -1))
    gain = initial - lowest
    if best == len(curve) - 1:
        if curve[best - 1]["held_out"] - lowest <= _MIN_IMPROVEMENT * gain:
            return None
        return (
            "Training was still getting better when its steps were done: more of them "
            f"({steps_setting}) may carry more."
        )
    if best == 0 or final - lowest <= _MIN_RISE * gain:
        return None
    at, steps = (f"{point['steps']:.0f}" for point in (curve[best], curve[-1]))
    return (
        f"Training was best after {at} of {steps} steps; then it learnt its text by heart and foretold other "
        f"text worse. More text ({text_setting}) may carry more."
    )
