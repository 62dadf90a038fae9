"""Presents a quantized checkpoint as an ordinary one: plain names, logical shapes, dequantized values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from rebase.errors import UnsafeFile, UnsupportedModel
from rebase.lora.tensors import TensorInfo, TensorReader
from rebase.models.quantization.bitsandbytes import find_bitsandbytes
from rebase.models.quantization.int4 import find_awq, find_gptq, find_packed_ints
from rebase.models.quantization.mxfp4 import find_mxfp4
from rebase.models.quantization.packed import PackedTensor
from rebase.models.quantization.scaled import find_scaled
from rebase.models.quantization.suggest import suggest_unquantized

_READ = ("bitsandbytes", "gptq", "awq", "fp8", "fbgemm_fp8", "compressed-tensors", "mxfp4")
_COMPRESSED_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "dense")


class WeightReader(TensorReader, Protocol):
    """A base's tensors, some of which are declared to be needed before they are read."""

    def declare_needed(self, names: Iterable[str]) -> None:
        """Declare which tensors will be read, so that a remote file need not be downloaded whole."""


class DequantizingReader:
    """A WeightReader over another one. `description`: the format, for reports."""

    def __init__(self, inner: WeightReader, quantization: Mapping[str, Any], repo_id: str) -> None:
        self._inner = inner
        self._quantization = quantization
        self._repo_id = repo_id
        self.description = describe_format(quantization)

    def infos(self) -> Mapping[str, TensorInfo]:
        """Every logical tensor; the parts of packed ones are not listed."""
        return self._infos

    def declare_needed(self, names: Iterable[str]) -> None:
        """The parts of the named tensors."""
        self._inner.declare_needed(
            part for name in names for part in (self._packed[name].parts if name in self._packed else (name,))
        )

    def read(self, name: str) -> Tensor:
        """One tensor, dequantized where it is packed."""
        if name not in self._packed:
            return self._inner.read(name)
        tensor = self._packed[name].decode(self._inner.read)
        if tensor.shape != self._infos[name].shape:
            raise UnsafeFile(f"'{name}' has shape {list(tensor.shape)} when it is dequantized.")
        return tensor

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a 2-D tensor."""
        if name in self._packed:
            return self.read(name)[start:stop]
        return self._inner.read_rows(name, start, stop)

    @cached_property
    def _packed(self) -> Mapping[str, PackedTensor]:
        infos = self._inner.infos()
        packed = _find_packed(self._inner, infos, self._quantization, self._repo_id)
        if not packed:
            raise UnsupportedModel(
                f"config.json says that the weights are quantized ({self.description}), but no tensor is "
                "stored in that format.",
                hint=suggest_unquantized(self._repo_id),
            )
        return packed

    @cached_property
    def _infos(self) -> Mapping[str, TensorInfo]:
        parts = {part for packed in self._packed.values() for part in packed.parts}
        plain = {name: info for name, info in self._inner.infos().items() if name not in parts}
        return plain | {name: packed.info for name, packed in self._packed.items()}


def describe_format(quantization: Mapping[str, Any]) -> str:
    """The format's name as a reader knows it, such as `bitsandbytes nf4`."""
    method = str(quantization.get("quant_method") or "unnamed method")[:40]
    if method == "bitsandbytes":
        kind = (
            "int8" if quantization.get("load_in_8bit") else quantization.get("bnb_4bit_quant_type", "4-bit")
        )
        return f"bitsandbytes {str(kind)[:20]}"
    if method in ("gptq", "awq"):
        return f"{method.upper()} {str(quantization.get('bits', 4))[:4]}-bit"
    return method


def _find_packed(
    reader: TensorReader, infos: Mapping[str, TensorInfo], quantization: Mapping[str, Any], repo_id: str
) -> dict[str, PackedTensor]:
    match quantization.get("quant_method"):
        case "bitsandbytes":
            return find_bitsandbytes(reader, infos, quantization)
        case "gptq":
            return find_gptq(infos, quantization)
        case "awq":
            return find_awq(infos, quantization)
        case "fp8" | "fbgemm_fp8":
            return find_scaled(infos, _get_block(quantization))
        case "mxfp4":
            return find_mxfp4(infos)
        case "compressed-tensors":
            return _find_compressed(infos, quantization, repo_id)
        case method:
            raise UnsupportedModel(
                f"The base model is quantized ({str(method or 'unnamed method')[:40]}), which is not read "
                f"here; {', '.join(_READ)} are.",
                hint=suggest_unquantized(repo_id),
            )


def _find_compressed(
    infos: Mapping[str, TensorInfo], quantization: Mapping[str, Any], repo_id: str
) -> dict[str, PackedTensor]:
    form = str(quantization.get("format", "dense"))
    groups = quantization.get("config_groups")
    schemes = list(groups.values()) if isinstance(groups, Mapping) else []
    if form not in _COMPRESSED_FORMATS or not schemes:
        raise UnsupportedModel(
            f"Weights in the form {form[:40]!r} of compressed-tensors are not read here.",
            hint=suggest_unquantized(repo_id),
        )
    weights = schemes[0].get("weights") if isinstance(schemes[0], Mapping) else None
    bits = weights.get("num_bits") if isinstance(weights, Mapping) else None
    if form == "pack-quantized":
        if bits not in (4, 8):
            raise UnsupportedModel(f"Packed weights of {str(bits)[:20]} bits are not read here.")
        return find_packed_ints(infos, int(bits))
    return find_scaled(infos)


def _get_block(quantization: Mapping[str, Any]) -> tuple[int, int] | None:
    block = quantization.get("weight_block_size")
    if isinstance(block, list) and len(block) == 2 and all(isinstance(n, int) and n > 0 for n in block):
        return block[0], block[1]
    return None
