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
from rebase.models.safetensors_header import MAX_TENSORS, TORCH_DTYPES, TensorSpan, read_header


class SafetensorsFile:
    """A `rebase.lora.tensors.TensorReader` over one file. The header is read and validated on first use."""

    def __init__(
        self,
        source: ByteSource,
        name: str,
        *,
        max_tensors: int = MAX_TENSORS,
        spans: Mapping[str, TensorSpan] | None = None,
    ) -> None:
        """`name`: the file's name in errors. `entries`: its header, if already read and validated."""
        self._source = source
        self._name = name
        self._max_tensors = max_tensors
        self._given_spans = spans

    @cached_property
    def spans(self) -> Mapping[str, TensorSpan]:
        """Name → dtype, shape and byte range, in file order."""
        if self._given_spans is not None:
            return self._given_spans
        return read_header(self._source, self._name, max_tensors=self._max_tensors)

    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor's dtype and shape."""
        return {name: TensorInfo(span.dtype, span.shape) for name, span in self.spans.items()}

    def read(self, name: str) -> Tensor:
        """One whole tensor in its stored dtype."""
        return self._read_span(self._get_span(name), name)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a 2-D tensor; only their bytes are read. IndexError outside the tensor."""
        span = self._get_span(name)
        if len(span.shape) != 2:
            raise UnsafeFile(f"'{name}' in {self._name} has shape {list(span.shape)}; expected a matrix.")
        rows, columns = span.shape
        if not 0 <= start <= stop <= rows:
            raise IndexError(f"rows {start} to {stop} of '{name}', which has {rows}")
        row_bytes = (span.end - span.begin) // max(rows, 1)
        begin, end = span.begin + start * row_bytes, span.begin + stop * row_bytes
        return self._read_span(TensorSpan(span.dtype, (stop - start, columns), begin, end), name)

    def _read_span(self, span: TensorSpan, name: str) -> Tensor:
        dtype = TORCH_DTYPES.get(span.dtype)
        if dtype is None:
            raise UnsupportedModel(
                f"'{name}' in {self._name} is stored as {span.dtype}, a quantized format.",
                hint="Use the unquantized checkpoint (bfloat16, float16 or float32) of this model.",
            )
        buffer = torch.empty(span.end - span.begin, dtype=torch.uint8)
        if buffer.numel():
            self._source.read_into(span.begin, buffer.numpy().data)
        return buffer.view(dtype).view(span.shape)

    def _get_span(self, name: str) -> TensorSpan:
        try:
            return self.spans[name]
        except KeyError:
            raise UnsafeFile(f"{self._name} has no tensor '{name}'.") from None
