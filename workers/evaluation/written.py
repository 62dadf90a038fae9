"""The adapter as it will be published, rounding and truncation included, as updates of the target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from transfer.adapter.config import AdapterConfig
from transfer.adapter.read import SourceAdapter, read_adapter
from transfer.adapter.write import BuiltAdapter
from transfer.weights import ModelWeights, TensorInfo
from workers.tensors.header import TORCH_DTYPES

_DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True, slots=True)
class _InMemoryTensors:
    """A `transfer.weights.TensorReader` over tensors that are there."""

    tensors: Mapping[str, Tensor]

    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor's dtype and shape."""
        return {
            name: TensorInfo(_DTYPE_NAMES[tensor.dtype], tuple(tensor.shape))
            for name, tensor in self.tensors.items()
        }

    def read(self, name: str) -> Tensor:
        """One tensor."""
        return self.tensors[name]

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop)."""
        return self.tensors[name][start:stop]


def read_back_adapter(built: BuiltAdapter, target: ModelWeights) -> SourceAdapter:
    """What whoever loads the result will have."""
    return read_adapter(AdapterConfig.parse(built.config), _InMemoryTensors(built.tensors), target)
