"""When a delivery that failed is tried again, and when it is given up."""

from __future__ import annotations

import hashlib

# 5 s, 30 s, 2 min, 10 min, 1 h, 3 h, 8 h, 24 h: a restart costs seconds, a bad night nothing.
DEFAULT_WAITS = "5,30,120,600,3600,10800,28800,86400"
JITTER = 0.2  # up to a fifth more, so that what failed together does not come back together
LONGEST_ASKED_S = 86400.0  # of a receiver's Retry-After
_MOST_WAITS = 30
_LONGEST_S = 30 * 86400.0


def parse_waits(text: str) -> tuple[float, ...]:
    """Seconds, separated by commas. Raises ValueError; an empty text means that nothing is tried twice."""
    waits = tuple(float(part) for part in text.split(",") if part.strip())
    if len(waits) > _MOST_WAITS or not all(0 <= wait <= _LONGEST_S for wait in waits):
        raise ValueError(f"must be at most {_MOST_WAITS} waits of 0 to {_LONGEST_S:.0f} seconds")
    return waits


def next_wait_s(waits: tuple[float, ...], failures: int, seed: str, asked_s: float | None) -> float | None:
    """How long to wait after the `failures`-th failure (1 is the first); None: give up.

    The jitter follows from the seed (the delivery's id), so a schedule can be told in advance. A receiver
    that asks for more patience gets it, up to a day; one that asks for less does not.
    """
    if failures > len(waits):
        return None
    digest = hashlib.sha256(f"{seed}/{failures}".encode()).digest()
    share = int.from_bytes(digest[:8]) / 2**64
    wait = waits[failures - 1] * (1 + JITTER * share)
    return max(wait, min(asked_s, LONGEST_ASKED_S)) if asked_s is not None else wait
