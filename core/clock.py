"""Time as a value that is passed in, so that leases and back-offs are tested without waiting.

Leases compare clocks of several machines: keep them in step (NTP) well inside `lease_s`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def utcnow() -> datetime:
    """The present as an aware UTC datetime."""
    return datetime.now(UTC)
