"""What is said of a column that is not there."""

from __future__ import annotations

from collections.abc import Iterable

from rebase.errors import RequestInvalid

_MAX_COLUMNS_LISTED = 40


def make_missing_column_error(name: str, column: str, known: Iterable[object]) -> RequestInvalid:
    """The error for a column that a file lacks, or that holds something else than strings."""
    columns = ", ".join(sorted(str(key)[:60] for key in known)[:_MAX_COLUMNS_LISTED])
    return RequestInvalid(
        f"'{name}' has no column '{column}' of strings; its columns: {columns or 'none'}.",
        hint="Name another column: corpus.column.",
        pointer="/corpus/column",
    )
