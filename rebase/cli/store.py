"""The deployment's own database, for commands that run on the service's side."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING

from rebase.errors import RequestInvalid
from rebase.settings import Settings

if TYPE_CHECKING:
    from rebase.store.store import Store

_DURATION_PATTERN = re.compile(r"(\d{1,6})([smhdw])")
_DURATION_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def open_store(settings: Settings) -> Store:
    """The job store of these settings."""
    from rebase.store.database import Database
    from rebase.store.limits import Limits
    from rebase.store.store import Store

    return Store(Database.open(settings.resolved_database_url), limits=Limits.from_settings(settings))


def parse_duration(text: str) -> timedelta:
    """`90d`, `12h`, `30m`. Raises RequestInvalid."""
    match = _DURATION_PATTERN.fullmatch(text.strip())
    if match is None:
        raise RequestInvalid(f"'{text}' is not a length of time.", hint="Examples: 90d, 12h, 30m")
    return timedelta(**{_DURATION_UNITS[match[2]]: int(match[1])})
