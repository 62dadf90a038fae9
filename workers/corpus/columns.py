"""What is said of a column that is not there."""

from __future__ import annotations

from collections.abc import Iterable

from rebase.errors import RequestInvalid

_SHOWN = 40


def column_missing(name: str, column: str, known: Iterable[object]) -> RequestInvalid:
    """The error for a column that a file lacks, or that holds something else than strings."""
    there = ", ".join(sorted(str(key)[:60] for key in known)[:_SHOWN])
    return RequestInvalid(
        f"'{name}' has no column '{column}' of strings; its columns: {there or 'none'}.",
        hint="Name another column: corpus.column.",
        pointer="/corpus/column",
    )
