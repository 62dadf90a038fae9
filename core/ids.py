"""Ids of rows."""

from __future__ import annotations

import secrets
import time


def new_id() -> str:
    """A UUID version 7 (RFC 9562) as 32 hex digits: milliseconds, finer time, 62 random bits."""
    nanoseconds = time.time_ns()
    milliseconds, rest = divmod(nanoseconds, 1_000_000)
    fraction = rest * 4096 // 1_000_000
    return f"{milliseconds:012x}7{fraction:03x}{0x8 << 60 | secrets.randbits(62):016x}"
