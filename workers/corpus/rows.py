"""Documents of one data file, one at a time: JSON lines, plain text, CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from rebase.errors import RequestInvalid
from workers.corpus.columns import make_missing_column_error
from workers.corpus.parquet import iter_parquet
from workers.corpus.stream import ByteSourceStream, open_text

_MAX_FIELD_CHARACTERS = 16 * 2**20  # characters of one CSV field; the module's own limit is 128 KiB


def iter_documents(stream: ByteSourceStream, name: str, column: str) -> Iterator[str]:
    """What stands under `column`, by the ending of `name`. A plain text has no columns: its documents have
    an empty line between them. Raises RequestInvalid."""
    suffix = name[name.rindex(".") :]
    if suffix == ".parquet":
        yield from iter_parquet(stream, name, column)
        return
    try:
        yield from _BY_SUFFIX[suffix](open_text(stream), name, column)
    except UnicodeDecodeError as exc:
        raise _make_unusable_error(name, "is not UTF-8 text") from exc


def _iter_json(text: TextIO, name: str, column: str) -> Iterator[str]:
    """An object a line; or one list of objects over all of the file."""
    first = text.read(1)
    if first == "[":
        rows = _parse_json(first + text.read(), name, 1)
        yield from (_get_text(row, name, column) for row in rows)
        return
    for number, line in enumerate(text, 1):
        full_line = first + line if number == 1 else line
        if full_line.strip():
            yield _get_text(_parse_json(full_line, name, number), name, column)


def _parse_json(text: str, name: str, line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise _make_unusable_error(name, f"is no JSON in line {line}") from exc


def _get_text(row: Any, name: str, column: str) -> str:
    """Null counts as empty, as in every format."""
    if not isinstance(row, dict):
        raise _make_unusable_error(name, "holds something else than objects")
    value = row.get(column, 0)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise make_missing_column_error(name, column, row)
    return value.encode("utf-8", "replace").decode()  # half a surrogate pair, which JSON can write


def _iter_text(text: TextIO, name: str, column: str) -> Iterator[str]:
    block: list[str] = []
    for line in text:
        if line.strip():
            block.append(line.rstrip("\r\n"))
        elif block:
            yield "\n".join(block)
            block = []
    yield "\n".join(block)


def _iter_csv(text: TextIO, name: str, column: str) -> Iterator[str]:
    previous_limit = csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    try:
        reader = csv.reader(text, strict=True)
        header = next(reader, [])
        if column not in header:
            raise make_missing_column_error(name, column, header)
        index = header.index(column)
        for row in reader:
            yield row[index] if index < len(row) else ""
    except csv.Error as exc:
        raise _make_unusable_error(name, f"is no CSV: {exc}") from exc
    finally:
        csv.field_size_limit(previous_limit)


def _make_unusable_error(name: str, problem: str) -> RequestInvalid:
    return RequestInvalid(
        f"'{name}' {problem}.", hint="Name another dataset, or a split of it.", pointer="/corpus"
    )


_BY_SUFFIX: dict[str, Callable[[TextIO, str, str], Iterator[str]]] = {
    ".jsonl": _iter_json,
    ".json": _iter_json,
    ".csv": _iter_csv,
    ".txt": _iter_text,
}
