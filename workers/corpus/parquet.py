"""Documents of a Parquet file, through pyarrow: of the wanted column only, one row group at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rebase.errors import NotAvailable, RebaseError, UnsafeFile
from workers.corpus.columns import column_missing
from workers.corpus.stream import CHUNK, Stream

_BATCH = 256  # rows
_LARGEST_CHUNK = 2**30  # bytes of one column in one row group, unpacked; the Hub writes some hundred MB


def of_parquet(stream: Stream, name: str, column: str) -> Iterator[str]:
    """The column's strings, null as empty.

    Raises NotAvailable without pyarrow, UnsafeFile for a file that is no Parquet or unpacks to too much,
    RequestInvalid for a column that is not there.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as exc:
        raise NotAvailable(
            f"'{name}' is a Parquet file, which this worker cannot read: pyarrow is not installed.",
            hint="Install the extra 'datasets' there, or name a dataset of JSON lines, CSV or text.",
            pointer="/corpus",
        ) from exc
    try:
        # Threads would read ahead; a buffer keeps one column's pages from being fetched all at once.
        file = parquet.ParquetFile(stream, buffer_size=CHUNK, pre_buffer=False)
        schema = file.schema_arrow
        if column not in schema.names or not _is_text(pa, schema.field(column).type):
            raise column_missing(name, column, schema.names)
        for group in range(file.num_row_groups):
            _check_size(file.metadata.row_group(group), name, column)
            for batch in file.iter_batches(_BATCH, row_groups=[group], columns=[column], use_threads=False):
                yield from (value or "" for value in batch.column(0).to_pylist())
    except RebaseError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as exc:
        raise UnsafeFile(
            f"'{name}' is no Parquet file that can be read.",
            hint="Name another dataset, or a split of it.",
            pointer="/corpus",
        ) from exc


def _is_text(pa: Any, kind: Any) -> bool:
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _check_size(group: Any, name: str, column: str) -> None:
    for place in range(group.num_columns):
        chunk = group.column(place)
        if chunk.path_in_schema == column and chunk.total_uncompressed_size > _LARGEST_CHUNK:
            raise UnsafeFile(
                f"'{name}' packs {chunk.total_uncompressed_size} bytes of '{column}' into one row group; "
                f"at most {_LARGEST_CHUNK} are unpacked.",
                pointer="/corpus",
            )
