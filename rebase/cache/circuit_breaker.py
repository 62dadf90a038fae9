"""A circuit breaker: after trouble, leave a tier alone for a while instead of paying each time."""

from __future__ import annotations

import time
from types import TracebackType

from rebase.logging import get_logger

_log = get_logger(__name__)


class CircuitBreaker:
    """Guards one tier of the cache. Logs trouble once, and again only if the tier worked in between.

    Used as `with breaker.guard(OSError): …`: the named errors of the body are swallowed and open the breaker;
    anything else passes.
    """

    def __init__(self, name: str, cool_off_s: float = 30.0) -> None:
        self._name = name
        self._cool_off_s = cool_off_s
        self._closes_at = 0.0
        self._logged = False

    @property
    def is_open(self) -> bool:
        """True while the tier is to be left alone."""
        return time.monotonic() < self._closes_at

    def guard(self, *errors: type[Exception]) -> _Guard:
        """A context manager around one use of the tier."""
        return _Guard(self, errors)

    def record_success(self) -> None:
        """The tier answered."""
        self._logged = False

    def record_failure(self, exc: BaseException) -> None:
        """The tier failed: leave it alone for the cool-off time."""
        self._closes_at = time.monotonic() + self._cool_off_s
        if self._logged:
            return
        self._logged = True
        # The class and errno only: messages of client libraries may hold addresses with passwords.
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
