"""A logical tensor that is stored as several packed ones, and the bit operations that formats share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rebase.errors import UnsafeFile
from rebase.lora.tensors import TensorInfo

ReadTensor = Callable[[str], Tensor]
MAX_ELEMENTS = 2**33  # of one logical tensor; the largest embedding in use has 2^30


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """`parts`: the stored tensors that it is made of. `decode` reads them and returns the logical tensor."""

    parts: tuple[str, ...]
    info: TensorInfo
    decode: Callable[[ReadTensor], Tensor]


def unpack_bits(packed: Tensor, bits: int) -> Tensor:
    """The unsigned numbers of `bits` bits in each int32, lowest first: (…, n) → (…, n · 32/bits), uint8."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    numbers: Tensor = (packed.to(torch.int32)[..., None] >> shifts) & (2**bits - 1)
    return numbers.to(torch.uint8).reshape(*packed.shape[:-1], -1)


def require_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raises UnsafeFile if a packed tensor cannot belong to its scales."""
    if shape != expected:
        raise UnsafeFile(
            f"The quantized tensor '{name}' has shape {list(shape)}; its other parts imply {list(expected)}.",
            hint="Upload the model again, or use the unquantized repo.",
        )


def check_size(name: str, shape: tuple[int, ...]) -> None:
    """Raises UnsafeFile for a logical shape that no weight has."""
    count = 1
    for size in shape:
        count *= size
    if any(size <= 0 for size in shape) or count > MAX_ELEMENTS:
        raise UnsafeFile(f"The quantized tensor '{name}' claims the shape {list(shape)[:8]}.")
