"""What the curve of a training says to whoever may train again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_RISE = 0.01  # of all that was gained: a loss that rises by less has not risen
_STILL = 0.02  # of all that was gained: a last stretch that brought less has come to its end


def advice(curve: Sequence[Mapping[str, float]], more_text: str, more_steps: str) -> str | None:
    """One sentence, or None where nothing speaks for more. `curve`: points with `steps` and `held_out` in
    nats, the first one untrained; `more_text`, `more_steps`: the settings that ask for them."""
    if len(curve) < 2:
        return None
    best = min(range(len(curve)), key=lambda at: curve[at]["held_out"])
    begun, least, ended = (curve[at]["held_out"] for at in (0, best, -1))
    gained = begun - least
    if best == len(curve) - 1:
        if curve[best - 1]["held_out"] - least <= _STILL * gained:
            return None
        return (
            "Training was still getting better when its steps were done: more of them "
            f"({more_steps}) may carry more."
        )
    if best == 0 or ended - least <= _RISE * gained:
        return None
    at, steps = (f"{point['steps']:.0f}" for point in (curve[best], curve[-1]))
    return (
        f"Training was best after {at} of {steps} steps; then it learnt its text by heart and foretold other "
        f"text worse. More text ({more_text}) may carry more."
    )
