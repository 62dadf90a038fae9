"""MXFP4 (OCP Microscaling): blocks of 32 four-bit floats with a shared power of two, as gpt-oss stores its
experts: `…_blocks` (experts, o, i/32, 16) bytes, the first number in the lower half, and `…_scales`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rebase.lora.tensors import TensorInfo
from rebase.models.quantization.packed import PackedTensor, ReadTensor, check_size, require_shape

_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_BLOCK_BYTES = 16
_EXPONENT_BIAS = 127
_DIMENSIONS = 4


def find_mxfp4(infos: Mapping[str, TensorInfo]) -> dict[str, PackedTensor]:
    """Parameter name → how it is stored; (experts, i, o) in bfloat16, as transformers holds it."""
    found: dict[str, PackedTensor] = {}
    for name, info in infos.items():
        if not name.endswith("_blocks") or len(info.shape) != _DIMENSIONS:
            continue
        stem = name.removesuffix("_blocks")
        experts, rows, blocks, size = info.shape
        scales = f"{stem}_scales"
        require_shape(name, (size,), (_BLOCK_BYTES,))
        require_shape(scales, infos[scales].shape if scales in infos else (), (experts, rows, blocks))
        shape = (experts, blocks * 2 * _BLOCK_BYTES, rows)
        check_size(stem, shape)
        found[stem] = PackedTensor((name, scales), TensorInfo("BF16", shape), _make_decoder(name, scales))
    return found


def _make_decoder(blocks: str, scales: str) -> Callable[[ReadTensor], Tensor]:
    def decode(read: ReadTensor) -> Tensor:
        packed = read(blocks)
        exponents = read(scales).int() - _EXPONENT_BIAS
        numbers = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2).long()
        values = torch.ldexp(torch.tensor(_VALUES)[numbers], exponents[..., None])  # (experts, o, blocks, 32)
        return values.flatten(-2).to(torch.bfloat16).transpose(1, 2).contiguous()

    return decode
