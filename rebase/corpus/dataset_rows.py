"""Iterates over the documents in one data file: JSON, JSON lines, plain text, CSV or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from rebase.errors import NotAvailable, RebaseError, RequestInvalid, UnsafeFile
from rebase.hub.base import ByteSource

_MAX_COLUMNS_LISTED = 40


def make_missing_column_error(name: str, column: str, known: Iterable[object]) -> RequestInvalid:
    """The error for a column that is missing or does not contain strings."""
    columns = ", ".join(sorted(str(key)[:60] for key in known)[:_MAX_COLUMNS_LISTED])
    return RequestInvalid(
        f"'{name}' has no column '{column}' of strings; its columns: {columns or 'none'}.",
        hint="Set corpus.column to another column.",
        pointer="/corpus/column",
    )


MAX_CORPUS_BYTES = 256 * 2**20  # for all files of a corpus together
CHUNK_BYTES = 2**20


@dataclass
class ReadBudget:
    """Bytes that may still be read, shared by all files of a corpus."""

    remaining: int = MAX_CORPUS_BYTES

    def spend(self, count: int, name: str) -> None:
        """Deduct `count` bytes. Raises UnsafeFile if the budget is exhausted."""
        self.remaining -= count
        if self.remaining < 0:
            raise UnsafeFile(
                f"More than {MAX_CORPUS_BYTES >> 20} MiB of '{name}' would have to be read for this corpus.",
                hint="Read fewer documents (corpus.n), or use a split with shorter ones.",
                pointer="/corpus",
            )


class ByteSourceStream(io.RawIOBase):
    """A seekable stream over a `ByteSource`."""

    def __init__(self, source: ByteSource, name: str, budget: ReadBudget) -> None:
        super().__init__()
        self._source = source
        self._name = name
        self._budget = budget
        self._position = 0

    def readable(self) -> bool:
        """Always True."""
        return True

    def seekable(self) -> bool:
        """Always True."""
        return True

    def tell(self) -> int:
        """The position in bytes from the beginning."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position, which may be past the end."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        """Read at most what is left, so that bogus sizes in a file cannot cause large allocations."""
        remaining = max(0, self._source.size - self._position)
        return super().read(remaining if size < 0 else min(size, remaining)) or b""

    def readinto(self, buffer: object, /) -> int:
        """Read into `buffer`. Raises as `ByteSource.read_into` does, and UnsafeFile beyond the budget."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        count = max(0, min(len(view), self._source.size - self._position))
        if count:
            self._budget.spend(count, self._name)
            self._source.read_into(self._position, view[:count])
            self._position += count
        return count


def open_text(stream: ByteSourceStream) -> io.TextIOWrapper:
    """The file as UTF-8 text, read in chunks; line endings are preserved."""
    return io.TextIOWrapper(io.BufferedReader(stream, CHUNK_BYTES), "utf-8-sig", newline="")


_BATCH_ROWS = 256
_MAX_CHUNK_BYTES = 2**30  # uncompressed bytes of one column in one row group; the Hub writes some hundred MB


def iter_parquet(stream: ByteSourceStream, name: str, column: str) -> Iterator[str]:
    """The column's strings; null becomes an empty string.

    Raises NotAvailable without pyarrow, UnsafeFile if the file is not valid Parquet or decompresses to too
    much, RequestInvalid if the column is missing.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as exc:
        raise NotAvailable(
            f"'{name}' is a Parquet file, which this worker cannot read: pyarrow is not installed.",
            hint=(
                "Install the extra 'datasets' on the worker, or use a dataset in JSON lines, CSV or text "
                "format."
            ),
            pointer="/corpus",
        ) from exc
    try:
        # Threads would read ahead; a buffer avoids fetching all pages of a column at once.
        file = parquet.ParquetFile(stream, buffer_size=CHUNK_BYTES, pre_buffer=False)
        schema = file.schema_arrow
        if column not in schema.names or not _is_string_type(pa, schema.field(column).type):
            raise make_missing_column_error(name, column, schema.names)
        for group in range(file.num_row_groups):
            _check_size(file.metadata.row_group(group), name, column)
            for batch in file.iter_batches(
                _BATCH_ROWS, row_groups=[group], columns=[column], use_threads=False
            ):
                yield from (value or "" for value in batch.column(0).to_pylist())
    except RebaseError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as exc:
        raise UnsafeFile(
            f"'{name}' is not a readable Parquet file.",
            hint="Use another dataset or another split.",
            pointer="/corpus",
        ) from exc


def _is_string_type(pa: Any, data_type: Any) -> bool:
    return any(
        test(data_type) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    )


def _check_size(group: Any, name: str, column: str) -> None:
    for index in range(group.num_columns):
        chunk = group.column(index)
        if chunk.path_in_schema == column and chunk.total_uncompressed_size > _MAX_CHUNK_BYTES:
            raise UnsafeFile(
                f"'{name}' packs {chunk.total_uncompressed_size} bytes of '{column}' into one row group; "
                f"the limit is {_MAX_CHUNK_BYTES}.",
                pointer="/corpus",
            )


_MAX_FIELD_CHARACTERS = 16 * 2**20  # per CSV field; the csv module's default limit is 128 KiB


def iter_documents(stream: ByteSourceStream, name: str, column: str) -> Iterator[str]:
    """The strings in `column`, in the format given by the suffix of `name`. Plain text has no columns: its
    documents are separated by empty lines. Raises RequestInvalid."""
    suffix = name[name.rindex(".") :]
    if suffix == ".parquet":
        yield from iter_parquet(stream, name, column)
        return
    try:
        yield from _BY_SUFFIX[suffix](open_text(stream), name, column)
    except UnicodeDecodeError as exc:
        raise _make_unusable_error(name, "is not UTF-8 text") from exc


def _iter_json(text: TextIO, name: str, column: str) -> Iterator[str]:
    """One object per line, or a single list of objects."""
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
        raise _make_unusable_error(name, f"is not valid JSON in line {line}") from exc


def _get_text(row: Any, name: str, column: str) -> str:
    """The string in `column`; null becomes an empty string, as in every format."""
    if not isinstance(row, dict):
        raise _make_unusable_error(name, "contains values that are not objects")
    value = row.get(column, 0)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise make_missing_column_error(name, column, row)
    return value.encode("utf-8", "replace").decode()  # lone surrogates are valid in JSON


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
        raise _make_unusable_error(name, f"is not valid CSV: {exc}") from exc
    finally:
        csv.field_size_limit(previous_limit)


def _make_unusable_error(name: str, problem: str) -> RequestInvalid:
    return RequestInvalid(
        f"'{name}' {problem}.", hint="Use another dataset or another split.", pointer="/corpus"
    )


_BY_SUFFIX: dict[str, Callable[[TextIO, str, str], Iterator[str]]] = {
    ".jsonl": _iter_json,
    ".json": _iter_json,
    ".csv": _iter_csv,
    ".txt": _iter_text,
}
