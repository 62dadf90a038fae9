"""bitsandbytes: 4-bit numbers (nf4, fp4) with block scales, which may be quantized themselves, and int8.

A 4-bit weight W (o, i) is stored flat, two numbers a byte, the first in the upper half. Each is an index into
a table of 16 values and is multiplied by the scale of its block. Int8 rows have one scale each, over 127.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rebase.errors import UnsafeFile
from rebase.lora.tensors import TensorInfo, TensorReader
from rebase.models.quantization.packed import PackedTensor, ReadTensor, check_size, require_shape

_STATE = ".quant_state.bitsandbytes__"
_MAX_STATE_BYTES = 4096
_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
_TORCH_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_TABLE_SIZE = 16
_NESTED_TABLE_SIZE = 256


def find_bitsandbytes(
    reader: TensorReader, infos: Mapping[str, TensorInfo], quantization: Mapping[str, Any]
) -> dict[str, PackedTensor]:
    """Weight name → how it is stored. Reads the small JSON that describes each 4-bit weight."""
    found: dict[str, PackedTensor] = {}
    for name in sorted(infos):
        if _STATE in name:
            weight = name.partition(_STATE)[0]
            found[weight] = _describe_4bit(reader, infos, weight, name)
        elif name.endswith(".SCB"):
            weight = f"{name.removesuffix('.SCB')}.weight"
            if weight in infos:
                found[weight] = _describe_int8(infos, weight, name)
    return found


def _describe_4bit(
    reader: TensorReader, infos: Mapping[str, TensorInfo], weight: str, state_name: str
) -> PackedTensor:
    if math.prod(infos[state_name].shape) > _MAX_STATE_BYTES:
        raise UnsafeFile(f"'{state_name}' is too large to describe a quantized tensor.")
    try:
        state = json.loads(bytes(reader.read(state_name).numpy().tobytes()))
        shape = tuple(int(size) for size in state["shape"])
        blocksize = int(state["blocksize"])
        dtype = _DTYPES[str(state["dtype"]).removeprefix("torch.")]
    except (ValueError, KeyError, TypeError) as exc:
        raise UnsafeFile(f"'{state_name}' does not describe a quantized tensor.") from exc
    check_size(weight, shape)
    stored = infos[weight]
    count = math.prod(shape)
    if _count_bytes(stored) * 2 != count + count % 2 or not 1 <= blocksize <= count + blocksize:
        raise UnsafeFile(f"'{weight}' does not hold the {count} numbers that '{state_name}' describes.")
    absmax = f"{weight}.absmax"
    require_shape(absmax, _get_shape(infos, absmax), (-(-count // blocksize),))
    require_shape(f"{weight}.quant_map", _get_shape(infos, f"{weight}.quant_map"), (_TABLE_SIZE,))
    parts = [weight, absmax, f"{weight}.quant_map", state_name]
    nested = f"{weight}.nested_absmax" in infos
    if nested:
        table = f"{weight}.nested_quant_map"
        require_shape(table, _get_shape(infos, table), (_NESTED_TABLE_SIZE,))
        parts += [f"{weight}.nested_absmax", table]

    def decode(read: ReadTensor) -> Tensor:
        scales = read(absmax)
        if nested:
            scales = _decode_scales(read, weight, scales, state)
        packed = read(weight).reshape(-1).view(torch.uint8)
        codes = torch.stack([packed >> 4, packed & 15], dim=1).reshape(-1)[:count].long()
        values = read(f"{weight}.quant_map").float()[codes]
        blocks = scales.float().repeat_interleave(blocksize)[:count]
        return (values * blocks).to(_TORCH_DTYPES[dtype]).reshape(shape)

    return PackedTensor(tuple(parts), TensorInfo(dtype, shape), decode)


def _decode_scales(read: ReadTensor, weight: str, scales: Tensor, state: Mapping[str, Any]) -> Tensor:
    """Double quantization: the scales are 8-bit indices with block scales and an offset of their own."""
    size = max(int(state.get("nested_blocksize", 256)), 1)
    values = read(f"{weight}.nested_quant_map").float()[scales.long()]
    blocks = read(f"{weight}.nested_absmax").float().repeat_interleave(size)[: values.numel()]
    if blocks.numel() != values.numel():
        raise UnsafeFile(f"'{weight}.nested_absmax' has too few scales.")
    return values * blocks + float(state.get("nested_offset", 0.0))


def _describe_int8(infos: Mapping[str, TensorInfo], weight: str, scale: str) -> PackedTensor:
    shape = infos[weight].shape
    check_size(weight, shape)
    require_shape(scale, infos[scale].shape, shape[:1])

    def decode(read: ReadTensor) -> Tensor:
        return (read(weight).float() * (read(scale).float()[:, None] / 127.0)).to(torch.float16)

    companions = [name for name in (f"{weight}_format",) if name in infos]
    return PackedTensor((weight, scale, *companions), TensorInfo("F16", shape), decode)


def _count_bytes(info: TensorInfo) -> int:
    sizes = {"U8": 1, "I8": 1, "F16": 2, "BF16": 2, "F32": 4, "I32": 4}
    return math.prod(info.shape) * sizes.get(info.dtype, 0)


def _get_shape(infos: Mapping[str, TensorInfo], name: str) -> tuple[int, ...]:
    if name not in infos:
        raise UnsafeFile(
            f"The quantized weights lack '{name}'.",
            hint="Upload the model again, or use the unquantized repo.",
        )
    return infos[name].shape
