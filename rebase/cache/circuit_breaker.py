"""A circuit breaker: after a failure, skips a cache tier for a while instead of paying for each timeout."""

from __future__ import annotations

import time
from types import TracebackType

from rebase.logging import get_logger

_log = get_logger(__name__)


class CircuitBreaker:
    """Guards one tier of the cache. Logs a failure once, and again only if the tier worked in between.

    Used as `with breaker.guard(OSError): …`: the listed errors are suppressed and open the breaker; other
    errors propagate.
    """

    def __init__(self, name: str, cool_off_s: float = 30.0) -> None:
        self._name = name
        self._cool_off_s = cool_off_s
        self._closes_at = 0.0
        self._logged = False

    @property
    def is_open(self) -> bool:
        """True while the tier should be skipped."""
        return time.monotonic() < self._closes_at

    def guard(self, *errors: type[Exception]) -> _Guard:
        """A context manager around one use of the tier."""
        return _Guard(self, errors)

    def record_success(self) -> None:
        """Record that the tier worked."""
        self._logged = False

    def record_failure(self, exc: BaseException) -> None:
        """Record a failure: open the breaker for the cool-off time."""
        self._closes_at = time.monotonic() + self._cool_off_s
        if self._logged:
            return
        self._logged = True
        # Only the class and errno: messages of client libraries may contain URLs with passwords.
        _log.warning(
            "cache_tier_off",
            tier=self._name,
            error=type(exc).__name__,
            errno=getattr(exc, "errno", None),
            seconds=self._cool_off_s,
        )


class _Guard:
    def __init__(self, breaker: CircuitBreaker, errors: tuple[type[Exception], ...]) -> None:
        self._breaker = breaker
        self._errors = errors

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if exc is None:
            self._breaker.record_success()
            return False
        if not isinstance(exc, self._errors):
            return False
        self._breaker.record_failure(exc)
        return True
