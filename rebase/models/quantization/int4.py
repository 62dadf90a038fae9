"""Integer formats with group scales: GPTQ, AWQ, and the packed form of compressed-tensors.

All compute W = (q − z) · s for groups of inputs. GPTQ and AWQ store the transposed weight, (i, o).
GPTQ packs along the inputs, and its zero points are one too low in version 1 of the format. AWQ packs along
the outputs, eight numbers in the order 0, 2, 4, 6, 1, 3, 5, 7. compressed-tensors packs the rows of W and
stores signed numbers with an offset of half the range.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rebase.errors import UnsafeFile, UnsupportedModel
from rebase.lora.tensors import TensorInfo
from rebase.models.quantization.packed import (
    PackedTensor,
    ReadTensor,
    check_size,
    require_shape,
    unpack_bits,
)

_WORD = 32
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # position of column k among the eight numbers of a word
_BITS = (2, 4, 8)


def find_gptq(infos: Mapping[str, TensorInfo], quantization: Mapping[str, Any]) -> dict[str, PackedTensor]:
    """Weight name → how GPTQ stores it."""
    bits = _get_bits(quantization, "bits", _BITS)
    offset = 0 if str(quantization.get("checkpoint_format")) == "gptq_v2" else 1
    found: dict[str, PackedTensor] = {}
    for name, info in infos.items():
        if name.endswith(".qweight"):
            stem = name.removesuffix(".qweight")
            found[f"{stem}.weight"] = _describe_gptq(infos, stem, info, bits, offset)
    return found


def _describe_gptq(
    infos: Mapping[str, TensorInfo], stem: str, info: TensorInfo, bits: int, offset: int
) -> PackedTensor:
    packed_rows, outputs = _get_matrix(f"{stem}.qweight", info)
    inputs = packed_rows * _WORD // bits
    check_size(stem, (outputs, inputs))
    groups, scale_columns = _get_matrix(f"{stem}.scales", _get(infos, f"{stem}.scales"))
    require_shape(f"{stem}.scales", (groups, scale_columns), (groups, outputs))
    require_shape(f"{stem}.qzeros", _get(infos, f"{stem}.qzeros").shape, (groups, outputs * bits // _WORD))
    index = f"{stem}.g_idx" if f"{stem}.g_idx" in infos else None
    if index is not None:
        require_shape(index, infos[index].shape, (inputs,))

    def decode(read: ReadTensor) -> Tensor:
        numbers = unpack_bits(read(f"{stem}.qweight").T.contiguous(), bits)  # (o, i)
        zeros = (unpack_bits(read(f"{stem}.qzeros"), bits).int() + offset) & (2**bits - 1)
        group = _get_groups(read(index) if index is not None else None, inputs, groups, stem)
        scales = read(f"{stem}.scales").float()
        weight: Tensor = (numbers.float() - zeros.float()[group].T) * scales[group].T
        return weight.to(torch.float16)

    parts = (f"{stem}.qweight", f"{stem}.qzeros", f"{stem}.scales", *((index,) if index else ()))
    return PackedTensor(parts, TensorInfo("F16", (outputs, inputs)), decode)


def find_awq(infos: Mapping[str, TensorInfo], quantization: Mapping[str, Any]) -> dict[str, PackedTensor]:
    """Weight name → how AWQ stores it (the `gemm` layout). Raises UnsupportedModel for other layouts."""
    bits = _get_bits(quantization, "bits" if "bits" in quantization else "w_bit", (4,))
    version = str(quantization.get("version", "gemm")).lower()
    if version != "gemm":
        raise UnsupportedModel(f"AWQ weights in the layout {version[:40]!r} are not read; `gemm` is.")
    found: dict[str, PackedTensor] = {}
    for name, info in infos.items():
        if name.endswith(".qweight"):
            stem = name.removesuffix(".qweight")
            found[f"{stem}.weight"] = _describe_awq(infos, stem, info, bits)
    return found


def _describe_awq(infos: Mapping[str, TensorInfo], stem: str, info: TensorInfo, bits: int) -> PackedTensor:
    inputs, packed_columns = _get_matrix(f"{stem}.qweight", info)
    outputs = packed_columns * _WORD // bits
    check_size(stem, (outputs, inputs))
    groups, _ = _get_matrix(f"{stem}.scales", _get(infos, f"{stem}.scales"))
    require_shape(f"{stem}.scales", infos[f"{stem}.scales"].shape, (groups, outputs))
    require_shape(f"{stem}.qzeros", _get(infos, f"{stem}.qzeros").shape, (groups, packed_columns))

    def decode(read: ReadTensor) -> Tensor:
        numbers = _reorder(unpack_bits(read(f"{stem}.qweight"), bits))  # (i, o)
        zeros = _reorder(unpack_bits(read(f"{stem}.qzeros"), bits)).float()
        scales = read(f"{stem}.scales").float()
        group = _get_groups(None, inputs, groups, stem)
        return ((numbers.float() - zeros[group]) * scales[group]).T.contiguous().to(torch.float16)

    parts = (f"{stem}.qweight", f"{stem}.qzeros", f"{stem}.scales")
    return PackedTensor(parts, TensorInfo("F16", (outputs, inputs)), decode)


def find_packed_ints(infos: Mapping[str, TensorInfo], bits: int) -> dict[str, PackedTensor]:
    """Weight name → how compressed-tensors packs it."""
    found: dict[str, PackedTensor] = {}
    for name, info in infos.items():
        if name.endswith(".weight_packed"):
            stem = name.removesuffix(".weight_packed")
            found[f"{stem}.weight"] = _describe_packed(infos, stem, info, bits)
    return found


def _describe_packed(infos: Mapping[str, TensorInfo], stem: str, info: TensorInfo, bits: int) -> PackedTensor:
    rows, words = _get_matrix(f"{stem}.weight_packed", info)
    scale_name, zero_name, index_name = (
        f"{stem}.weight_scale",
        f"{stem}.weight_zero_point",
        f"{stem}.weight_g_idx",
    )
    scale_rows, groups = _get_matrix(scale_name, _get(infos, scale_name))
    columns = words * _WORD // bits  # the last word may be padded; `weight_shape` says so when it is read
    check_size(stem, (rows, columns))
    has_zeros, has_index = zero_name in infos, index_name in infos
    parts = [f"{stem}.weight_packed", scale_name, f"{stem}.weight_shape"]
    parts += [zero_name] if has_zeros else []
    parts += [index_name] if has_index else []

    def decode(read: ReadTensor) -> Tensor:
        shape = tuple(read(f"{stem}.weight_shape").tolist())
        if len(shape) != 2 or shape[0] != rows or not columns - _WORD // bits < shape[1] <= columns:
            raise UnsafeFile(
                f"'{stem}.weight_shape' is {list(shape)}, which the packed weight does not hold."
            )
        half = 2 ** (bits - 1)
        numbers = unpack_bits(read(f"{stem}.weight_packed"), bits)[:, : shape[1]].float() - half
        group = _get_groups(read(index_name) if has_index else None, shape[1], groups, stem)
        if has_zeros:
            zeros = read(zero_name)
            if zeros.dtype == torch.int32:  # packed along the rows
                zeros = unpack_bits(zeros.T.contiguous(), bits).T[:scale_rows].float() - half
            numbers = numbers - zeros.float()[:, group]
        weight: Tensor = numbers * read(scale_name).float()[:, group]
        return weight.to(torch.bfloat16)

    return PackedTensor(tuple(parts), TensorInfo("BF16", (rows, columns)), decode)


def _get_groups(index: Tensor | None, inputs: int, groups: int, stem: str) -> Tensor:
    """The group of each input."""
    if index is None:
        return torch.arange(inputs) // max(-(-inputs // groups), 1)
    group = index.long()
    if group.numel() != inputs or bool((group < 0).any()) or bool((group >= groups).any()):
        raise UnsafeFile(f"The group indices of '{stem}' do not fit its {groups} groups of scales.")
    return group


def _reorder(numbers: Tensor) -> Tensor:
    """AWQ's columns in their order."""
    eights = numbers.reshape(numbers.shape[0], -1, len(_AWQ_ORDER))
    return eights[:, :, list(_AWQ_ORDER)].reshape(numbers.shape)


def _get_bits(quantization: Mapping[str, Any], key: str, allowed: tuple[int, ...]) -> int:
    bits = quantization.get(key, 4)
    if bits not in allowed:
        raise UnsupportedModel(
            f"Weights of {str(bits)[:20]} bits are not read in this format; "
            f"{', '.join(map(str, allowed))} are.",
            hint="Use the unquantized repo of the same model.",
        )
    return int(bits)


def _get(infos: Mapping[str, TensorInfo], name: str) -> TensorInfo:
    if name not in infos:
        raise UnsafeFile(
            f"The quantized weights lack '{name}'.",
            hint="Upload the model again, or use the unquantized repo.",
        )
    return infos[name]


def _get_matrix(name: str, info: TensorInfo) -> tuple[int, int]:
    if len(info.shape) != 2 or 0 in info.shape:
        raise UnsafeFile(
            f"The quantized tensor '{name}' should be a matrix, but has shape {list(info.shape)}."
        )
    rows, columns = info.shape
    return rows, columns
