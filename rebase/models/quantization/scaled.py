"""Weights in FP8 or int8 with scales: W = q · scale, one scale for the tensor, each row, or each block.

DeepSeek and Qwen store `weight_scale_inv` for blocks of 128 × 128 (the last ones may be partial); others, and
the format of compressed-tensors, store `weight_scale`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rebase.errors import UnsafeFile
from rebase.lora.tensors import TensorInfo
from rebase.models.quantization.packed import PackedTensor, ReadTensor, check_size

_STORED = frozenset({"F8_E4M3", "F8_E5M2", "I8"})
_SUFFIXES = ("_scale_inv", "_scale")


def find_scaled(
    infos: Mapping[str, TensorInfo], block: tuple[int, int] | None = None
) -> dict[str, PackedTensor]:
    """Weight name → how it is stored. `block`: the config's block size; without it the shapes tell."""
    found: dict[str, PackedTensor] = {}
    for name, info in infos.items():
        if info.dtype not in _STORED or len(info.shape) != 2:
            continue
        scale = next((f"{name}{suffix}" for suffix in _SUFFIXES if f"{name}{suffix}" in infos), None)
        if scale is not None:
            found[name] = _describe(infos, name, scale, block)
    return found


def _describe(
    infos: Mapping[str, TensorInfo], name: str, scale: str, block: tuple[int, int] | None
) -> PackedTensor:
    rows, columns = infos[name].shape
    check_size(name, (rows, columns))
    scale_shape = infos[scale].shape
    block_rows, block_columns = _find_block(name, (rows, columns), scale_shape, block)
    zero_point = f"{name}_zero_point"
    has_zero_point = zero_point in infos

    def decode(read: ReadTensor) -> Tensor:
        values = read(name).float()
        if has_zero_point:
            offsets = read(zero_point).float().reshape(scale_shape or (1,))
            values = values - _spread(offsets, rows, columns, block_rows, block_columns)
        scales = read(scale).float().reshape(scale_shape or (1,))
        product = values * _spread(scales, rows, columns, block_rows, block_columns)
        return product.to(torch.bfloat16)

    parts = (name, scale, *((zero_point,) if has_zero_point else ()))
    return PackedTensor(parts, TensorInfo("BF16", (rows, columns)), decode)


def _find_block(
    name: str, shape: tuple[int, int], scale_shape: tuple[int, ...], block: tuple[int, int] | None
) -> tuple[int, int]:
    rows, columns = shape
    match scale_shape:
        case () | (1,) | (1, 1):
            return rows, columns
        case (n,) if n == rows:
            return 1, columns
        case (n, 1) if n == rows:
            return 1, columns
        case (n, m):
            size = block or (-(-rows // n), -(-columns // m))
            if n and m and (-(-rows // max(size[0], 1)), -(-columns // max(size[1], 1))) == (n, m):
                return size
    raise UnsafeFile(
        f"The scales of '{name}' have shape {list(scale_shape)}, which does not fit its {rows}×{columns}.",
        hint="Upload the model again, or use the unquantized repo.",
    )


def _spread(scales: Tensor, rows: int, columns: int, block_rows: int, block_columns: int) -> Tensor:
    """One number a block → something that broadcasts to (rows, columns)."""
    if scales.numel() == 1:
        return scales.reshape(1, 1)
    grid = scales.reshape(-(-rows // block_rows), -(-columns // block_columns))
    grid = grid.repeat_interleave(block_rows, 0)[:rows] if block_rows > 1 else grid
    if block_columns >= columns:
        return grid
    return grid.repeat_interleave(block_columns, 1)[:, :columns]
