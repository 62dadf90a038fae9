"""The interface for reading named tensors from disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

READABLE_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor's entry in a safetensors header. `dtype` is the format's own name, such as "BF16"."""

    dtype: str
    shape: tuple[int, ...]


class TensorReader(Protocol):
    """Named tensors in one or more files. Reads raise the implementation's own typed errors."""

    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor's dtype and shape, without reading tensor data."""

    def read(self, name: str) -> Tensor:
        """One tensor in its stored dtype."""

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a 2-D tensor in its stored dtype."""
