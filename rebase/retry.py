"""Trying again: pauses that grow, bounded by a number of attempts or by a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses in seconds: `first_s`, then `factor` times the one before, at most `max_s`."""

    first_s: float
    factor: float = 2.0
    max_s: float = float("inf")

    def delays(self) -> Iterator[float]:
        """The pauses, without end."""
        delay = self.first_s
        while True:
            yield min(delay, self.max_s)
            delay = min(delay * self.factor, self.max_s)


def retry(
    call: Callable[[], T],
    on: type[Exception] | tuple[type[Exception], ...],
    backoff: Backoff,
    *,
    attempts: int | None = None,
    timeout_s: float | None = None,
    on_retry: Callable[[Exception], None] | None = None,
) -> T:
    """`call()`, again after an error of the kinds `on`.

    Gives up after `attempts` calls, or when the next pause would end after `timeout_s`: the last error is
    raised then. `on_retry` sees every error that is followed by a pause.
    """
    deadline = time.monotonic() + timeout_s if timeout_s is not None else None
    for attempt, delay in enumerate(backoff.delays(), 1):
        try:
            return call()
        except on as exc:
            if attempt == attempts or (deadline is not None and time.monotonic() + delay > deadline):
                raise
            if on_retry is not None:
                on_retry(exc)
        time.sleep(delay)
    raise AssertionError("the delays never end")
