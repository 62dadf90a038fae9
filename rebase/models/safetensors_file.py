"""Reads tensors of one safetensors file on demand, each into its own memory.

Nothing is memory-mapped: mapped pages count as the process's memory, and peak memory must not grow with the
file.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from rebase.errors import UnsafeFile, UnsupportedModel
from rebase.hub.base import ByteSource
from rebase.lora.tensors import TensorInfo
from rebase.models.safetensors_header import MAX_TENSORS, TORCH_DTYPES, Entry, read_header


class SafetensorsFile:
    """A `rebase.lora.tensors.TensorReader` over one file. The header is read and validated on first use."""

    def __init__(
        self,
        source: ByteSource,
        name: str,
        *,
        max_tensors: int = MAX_TENSORS,
        entries: Mapping[str, Entry] | None = None,
    ) -> None:
        """`name`: the file's name in errors. `entries`: its header, if already read and validated."""
        self._source = source
        self._name = name
        self._max_tensors = max_tensors
        self._known = entries

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """Name → dtype, shape and byte range, in file order."""
        if self._known is not None:
            return self._known
        return read_header(self._source, self._name, max_tensors=self._max_tensors)

    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor's dtype and shape."""
        return {name: TensorInfo(entry.dtype, entry.shape) for name, entry in self.entries.items()}

    def read(self, name: str) -> Tensor:
        """One whole tensor in its stored dtype."""
        return self._load(self._entry(name), name)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a 2-D tensor; only their bytes are read. IndexError outside the tensor."""
        entry = self._entry(name)
        if len(entry.shape) != 2:
            raise UnsafeFile(
                f"'{name}' in {self._name} has shape {list(entry.shape)}; a matrix was expected."
            )
        rows, columns = entry.shape
        if not 0 <= start <= stop <= rows:
            raise IndexError(f"rows {start} to {stop} of '{name}', which has {rows}")
        row_bytes = (entry.end - entry.begin) // max(rows, 1)
        begin, end = entry.begin + start * row_bytes, entry.begin + stop * row_bytes
        return self._load(Entry(entry.dtype, (stop - start, columns), begin, end), name)

    def _load(self, entry: Entry, name: str) -> Tensor:
        dtype = TORCH_DTYPES.get(entry.dtype)
        if dtype is None:
            raise UnsupportedModel(
                f"'{name}' in {self._name} is stored as {entry.dtype}, a quantised format.",
                hint="Name the unquantised checkpoint (bfloat16, float16 or float32) of this model.",
            )
        buffer = torch.empty(entry.end - entry.begin, dtype=torch.uint8)
        if buffer.numel():
            self._source.read_into(entry.begin, buffer.numpy().data)
        return buffer.view(dtype).view(entry.shape)

    def _entry(self, name: str) -> Entry:
        try:
            return self.entries[name]
        except KeyError:
            raise UnsafeFile(f"{self._name} holds no tensor '{name}'.") from None
