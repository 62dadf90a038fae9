"""Documents of one data file, one at a time: JSON lines, plain text, CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from rebase.errors import RequestInvalid
from workers.corpus.columns import column_missing
from workers.corpus.parquet import of_parquet
from workers.corpus.stream import Stream, text_of

_LONGEST_FIELD = 16 * 2**20  # characters of one CSV field; the module's own limit is 128 KiB


def documents(stream: Stream, name: str, column: str) -> Iterator[str]:
    """What stands under `column`, by the ending of `name`. A plain text has no columns: its documents have
    an empty line between them. Raises RequestInvalid."""
    suffix = name[name.rindex(".") :]
    if suffix == ".parquet":
        yield from of_parquet(stream, name, column)
        return
    try:
        yield from _BY_SUFFIX[suffix](text_of(stream), name, column)
    except UnicodeDecodeError as exc:
        raise _unusable(name, "is not UTF-8 text") from exc


def _of_json(text: TextIO, name: str, column: str) -> Iterator[str]:
    """An object a line; or one list of objects over all of the file."""
    first = text.read(1)
    if first == "[":
        rows = _parsed(first + text.read(), name, 1)
        yield from (_field(row, name, column) for row in rows)
        return
    for number, line in enumerate(text, 1):
        whole = first + line if number == 1 else line
        if whole.strip():
            yield _field(_parsed(whole, name, number), name, column)


def _parsed(text: str, name: str, line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise _unusable(name, f"is no JSON in line {line}") from exc


def _field(row: Any, name: str, column: str) -> str:
    """Null counts as empty, as in every format."""
    if not isinstance(row, dict):
        raise _unusable(name, "holds something else than objects")
    found = row.get(column, 0)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise column_missing(name, column, row)
    return found.encode("utf-8", "replace").decode()  # half a surrogate pair, which JSON can write


def _of_text(text: TextIO, name: str, column: str) -> Iterator[str]:
    block: list[str] = []
    for line in text:
        if line.strip():
            block.append(line.rstrip("\r\n"))
        elif block:
            yield "\n".join(block)
            block = []
    yield "\n".join(block)


def _of_csv(text: TextIO, name: str, column: str) -> Iterator[str]:
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        reader = csv.reader(text, strict=True)
        header = next(reader, [])
        if column not in header:
            raise column_missing(name, column, header)
        place = header.index(column)
        for row in reader:
            yield row[place] if place < len(row) else ""
    except csv.Error as exc:
        raise _unusable(name, f"is no CSV: {exc}") from exc
    finally:
        csv.field_size_limit(before)


def _unusable(name: str, what: str) -> RequestInvalid:
    return RequestInvalid(
        f"'{name}' {what}.", hint="Name another dataset, or a split of it.", pointer="/corpus"
    )


_BY_SUFFIX: dict[str, Callable[[TextIO, str, str], Iterator[str]]] = {
    ".jsonl": _of_json,
    ".json": _of_json,
    ".csv": _of_csv,
    ".txt": _of_text,
}
