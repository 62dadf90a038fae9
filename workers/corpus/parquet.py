"""Documents of a Parquet file, through pyarrow: of the wanted column only, one row group at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rebase.errors import NotAvailable, RebaseError, UnsafeFile
from workers.corpus.columns import make_missing_column_error
from workers.corpus.stream import CHUNK_BYTES, ByteSourceStream

_BATCH_ROWS = 256  # rows
_MAX_CHUNK_BYTES = 2**30  # bytes of one column in one row group, unpacked; the Hub writes some hundred MB


def iter_parquet(stream: ByteSourceStream, name: str, column: str) -> Iterator[str]:
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
            f"'{name}' is no Parquet file that can be read.",
            hint="Name another dataset, or a split of it.",
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
                f"at most {_MAX_CHUNK_BYTES} are unpacked.",
                pointer="/corpus",
            )
