"""Regular expressions that come with an adapter, matched the way PEFT does but under a time limit.

The patterns are untrusted input, and Python's own engine can take exponential time on a hostile one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import regex  # type: ignore[import-untyped]

from rebase.errors import MalformedAdapter

_SECONDS = 0.2  # honest patterns take microseconds
_MAX_LENGTH = 4096


def matches_whole(pattern: str, name: str) -> bool:
    """Does the pattern match the whole name? PEFT's rule for `target_modules` given as a string."""
    return _match(pattern, name)


def matches_suffix(pattern: str, name: str) -> bool:
    """Does the pattern match the name or its part after some dot? PEFT's rule for rank and alpha patterns."""
    return _match(rf"(.*\.)?({pattern})$", name)


def _match(pattern: str, name: str) -> bool:
    if len(pattern) > _MAX_LENGTH:
        raise MalformedAdapter(f"adapter_config.json: a pattern is longer than {_MAX_LENGTH} characters.")
    try:
        return _compiled(pattern).fullmatch(name, timeout=_SECONDS) is not None
    except (regex.error, TimeoutError, RecursionError) as error:
        raise MalformedAdapter(
            f"adapter_config.json: the pattern {pattern[:80]!r} cannot be evaluated.",
            hint="Name the modules as a list instead.",
        ) from error


@lru_cache(maxsize=16384)  # some adapters have one pattern per module, and every module is held against all
def _compiled(pattern: str) -> Any:
    return regex.compile(pattern)
