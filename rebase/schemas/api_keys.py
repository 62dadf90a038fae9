"""What a key may do. Each scope implies those before it."""

from __future__ import annotations

from enum import StrEnum


class Scope(StrEnum):
    """`read`: look. `convert`: also submit, cancel, retry, delete jobs and pools. `admin`: also keys, tokens
    and data of the tenant."""

    READ = "read"
    CONVERT = "convert"
    ADMIN = "admin"

    def allows(self, required: Scope) -> bool:
        """Is `needed` this scope or one that it implies?"""
        return _ORDER.index(required) <= _ORDER.index(self)


_ORDER = (Scope.READ, Scope.CONVERT, Scope.ADMIN)
