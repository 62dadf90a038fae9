"""What every repository uses: a clock, ids, page cursors and a tenant lock.

The clock is injected, so that leases and back-off are tested without waiting. Leases compare the clocks of
several machines: keep them synchronised (NTP) to well within `lease_s`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime

from sqlalchemy import Connection, func, select

from rebase.errors import RequestInvalid
from rebase.store.database import Database
from rebase.store.limits import NO_LIMITS, Limits

Clock = Callable[[], datetime]


def utcnow() -> datetime:
    """The current time as an aware UTC datetime."""
    return datetime.now(UTC)


def new_id() -> str:
    """A UUID version 7 (RFC 9562) as 32 hex digits: milliseconds, sub-millisecond time, 62 random bits."""
    nanoseconds = time.time_ns()
    milliseconds, rest = divmod(nanoseconds, 1_000_000)
    fraction = rest * 4096 // 1_000_000
    return f"{milliseconds:012x}7{fraction:03x}{0x8 << 60 | secrets.randbits(62):016x}"


class Repository:
    """A database and a clock. `max_attempts`: how often a job is claimed before it fails for good; `limits`:
    the limits of tenants without a row of their own."""

    def __init__(
        self, db: Database, clock: Clock = utcnow, *, max_attempts: int = 3, limits: Limits = NO_LIMITS
    ) -> None:
        self.db = db
        self.clock = clock
        self.max_attempts = max_attempts
        self.limits = limits


def lock_tenant(connection: Connection, purpose: str, tenant_id: str) -> None:
    """Serialise transactions for this purpose and tenant with an advisory lock; SQLite has a single writer
    anyway."""
    if connection.dialect.name != "postgresql":
        return
    digest = hashlib.sha256(f"{purpose}\0{tenant_id}".encode()).digest()
    number = int.from_bytes(digest[:8], "big", signed=True)
    connection.execute(select(func.pg_advisory_xact_lock(number)))


def encode_cursor(job_id: str) -> str:
    """An opaque token for the page after this job."""
    return base64.urlsafe_b64encode(bytes.fromhex(job_id)).decode().rstrip("=")


def decode_cursor(cursor: str) -> str:
    """The job id inside a cursor. Raises RequestInvalid for anything not made by `encode_cursor`."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 16:
        raise RequestInvalid(
            "The cursor was not issued by this service.",
            hint="Start again without 'cursor'.",
            pointer="/cursor",
        )
    return raw.hex()


MAX_PAGE = 200
_ID_PATTERN = re.compile(r"[0-9a-f]{32}")


def is_valid_id(text: str) -> bool:
    """Whether this can be an id. A client's string may contain characters that the database refuses."""
    return _ID_PATTERN.fullmatch(text) is not None


def check_page_limit(limit: int) -> None:
    """Raises RequestInvalid for a page size that is out of range."""
    if not 1 <= limit <= MAX_PAGE:
        raise RequestInvalid(f"'limit' must be between 1 and {MAX_PAGE}.", pointer="/limit")
