"""Quantized checkpoints read as the library that owns the format dequantizes them, number by number."""

from __future__ import annotations

from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from torch import Tensor

from rebase.errors import UnsafeFile, UnsupportedModel
from rebase.lora.tensors import TensorInfo
from rebase.models.quantization.reader import DequantizingReader
from rebase.models.quantization.suggest import suggest_unquantized
from support.tiny_models import FolderReader

NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float8_e4m3fn: "F8_E4M3",
}


class StoredTensors(FolderReader):
    """Tensors in memory, of any dtype that quantized checkpoints use."""

    def infos(self) -> dict[str, TensorInfo]:
        return {
            name: TensorInfo(NAMES[tensor.dtype], tuple(tensor.shape))
            for name, tensor in self.tensors.items()
        }

    def declare_needed(self, names: Any) -> None:
        self.reads.extend(names)


def read(tensors: dict[str, Tensor], **quantization: Any) -> DequantizingReader:
    return DequantizingReader(StoredTensors(tensors), quantization, "acme/model-4bit")


def make_weight(rows: int = 96, columns: int = 128) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False])
def test_bitsandbytes_4_bit_weights_are_bit_for_bit_its_own(
    dtype: torch.dtype, kind: str, nested: bool
) -> None:
    packed, state = bnb.quantize_4bit(
        make_weight().to(dtype), blocksize=64, compress_statistics=nested, quant_type=kind
    )
    parts = {f"x.weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    reader = read({"x.weight": packed, **parts}, quant_method="bitsandbytes", bnb_4bit_quant_type=kind)
    assert set(reader.infos()) == {"x.weight"}
    assert reader.infos()["x.weight"] == TensorInfo(NAMES[dtype], (96, 128))
    assert torch.equal(reader.read("x.weight"), bnb.dequantize_4bit(packed, state))
    assert torch.equal(reader.read_rows("x.weight", 5, 9), bnb.dequantize_4bit(packed, state)[5:9])


def test_4_bit_numbers_may_be_stored_as_another_dtype() -> None:
    packed, state = bnb.quantize_4bit(
        make_weight(), blocksize=64, quant_type="nf4", quant_storage=torch.bfloat16
    )
    parts = {f"x.weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    reader = read({"x.weight": packed, **parts}, quant_method="bitsandbytes")
    assert torch.equal(reader.read("x.weight"), bnb.dequantize_4bit(packed, state))


def test_bitsandbytes_int8_weights_are_its_own() -> None:
    quantized, scales, _ = bnb.int8_vectorwise_quant(make_weight().half())
    reader = read({"x.weight": quantized, "x.SCB": scales}, quant_method="bitsandbytes", load_in_8bit=True)
    expected = bnb.int8_vectorwise_dequant(quantized, scales)
    torch.testing.assert_close(reader.read("x.weight").float(), expected.float(), rtol=2e-3, atol=1e-6)
    assert reader.description == "bitsandbytes int8"


@pytest.mark.parametrize("shape", [(256, 384), (200, 300)])
def test_fp8_blocks_are_those_of_transformers(shape: tuple[int, int]) -> None:
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

    weight = make_weight(*shape).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-shape[0] // 128), -(-shape[1] // 128)) + 0.5
    tensors = {"x.weight": weight, "x.weight_scale_inv": scales}
    reader = read(tensors, quant_method="fp8", weight_block_size=[128, 128])
    result = reader.read("x.weight")
    spread = scales.repeat_interleave(128, 0)[: shape[0]].repeat_interleave(128, 1)[:, : shape[1]]
    assert torch.equal(result, (weight.float() * spread).to(torch.bfloat16))
    if shape[0] % 128 == shape[1] % 128 == 0:
        theirs = _dequantize_fp8_weight(weight, scales, [128, 128], torch.bfloat16)
        torch.testing.assert_close(result, theirs, rtol=1e-2, atol=0)  # it multiplies in bfloat16


@pytest.mark.parametrize("scale_shape", [(), (1,), (96, 1)])
def test_fp8_scales_of_a_tensor_or_of_rows_multiply_them(scale_shape: tuple[int, ...]) -> None:
    weight, scale = make_weight().to(torch.float8_e4m3fn), torch.rand(scale_shape) + 0.5
    reader = read({"x.weight": weight, "x.weight_scale": scale}, quant_method="fbgemm_fp8")
    assert torch.equal(reader.read("x.weight"), (weight.float() * scale).to(torch.bfloat16))


def test_mxfp4_experts_are_those_of_transformers() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 8, 2, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(118, 130, (3, 8, 2), dtype=torch.uint8, generator=generator)
    tensors = {"experts.gate_up_proj_blocks": blocks, "experts.gate_up_proj_scales": scales}
    reader = read(tensors, quant_method="mxfp4")
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
    assert torch.equal(reader.read("experts.gate_up_proj"), expected)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_numbers_of_compressed_tensors_are_its_own(bits: int, symmetric: bool) -> None:
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    arguments = QuantizationArgs(num_bits=bits, strategy="group", group_size=32, symmetric=symmetric)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    weight = make_weight(64, 96)
    groups = weight.view(64, 3, 32)
    scale = groups.abs().amax(2) / (2 ** (bits - 1) - 1)
    zero = torch.zeros_like(scale, dtype=torch.int8)
    if not symmetric:
        zero += torch.arange(3, dtype=torch.int8)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
    packed = PackedQuantizationCompressor.compress(state, scheme)
    expected = PackedQuantizationCompressor.decompress(packed, scheme)["weight"]
    tensors = {f"x.{name}": tensor for name, tensor in packed.items()}
    reader = read(
        tensors,
        quant_method="compressed-tensors",
        format="pack-quantized",
        config_groups={"group_0": {"weights": {"num_bits": bits}}},
    )
    torch.testing.assert_close(reader.read("x.weight").float(), expected.float(), rtol=8e-3, atol=1e-6)
    assert set(reader.infos()) == {"x.weight"}


def pack(numbers: Tensor, bits: int) -> Tensor:
    """Unsigned numbers into int32 along the last dimension, lowest bits first: GPTQ's published layout."""
    words = numbers.long().view(*numbers.shape[:-1], -1, 32 // bits)
    shifts = torch.arange(0, 32, bits)
    packed = (words << shifts).sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).int()


def make_integers(bits: int, groups: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """(numbers (i, o), zero points (groups, o), scales (groups, o))."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, 2**bits, (64, 32), generator=generator)
    zeros = torch.randint(1, 2**bits, (groups, 32), generator=generator)
    return numbers, zeros, torch.rand(groups, 32, generator=generator).half()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("checkpoint_format", "offset"), [("gptq", 1), ("gptq_v2", 0)])
@pytest.mark.parametrize("shuffled", [True, False])
def test_gptq_weights_follow_their_groups_and_zero_points(
    bits: int, checkpoint_format: str, offset: int, shuffled: bool
) -> None:
    numbers, zeros, scales = make_integers(bits)
    group = torch.arange(64) // 16
    if shuffled:
        group = group[torch.randperm(64, generator=torch.Generator().manual_seed(1))]
    tensors = {
        "x.qweight": pack(numbers.T.contiguous(), bits).T.contiguous(),
        "x.qzeros": pack(zeros - offset, bits),
        "x.scales": scales,
        "x.g_idx": group.int(),
        "x.bias": torch.ones(32),
    }
    reader = read(tensors, quant_method="gptq", bits=bits, checkpoint_format=checkpoint_format)
    expected = ((numbers - zeros[group]).float() * scales.float()[group]).T
    torch.testing.assert_close(reader.read("x.weight").float(), expected, rtol=1e-3, atol=1e-3)
    assert set(reader.infos()) == {"x.weight", "x.bias"}
    assert reader.infos()["x.weight"].shape == (32, 64)


def test_awq_weights_follow_the_order_of_their_columns() -> None:
    numbers, zeros, scales = make_integers(4)
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])  # column order[k] is the k-th number of a word

    def interleave(values: Tensor) -> Tensor:
        return values.view(values.shape[0], -1, 8)[:, :, order].reshape(values.shape)

    tensors = {
        "x.qweight": pack(interleave(numbers), 4),
        "x.qzeros": pack(interleave(zeros), 4),
        "x.scales": scales,
    }
    reader = read(tensors, quant_method="awq", bits=4, version="gemm")
    group = torch.arange(64) // 16
    expected = ((numbers - zeros[group]).float() * scales.float()[group]).T
    torch.testing.assert_close(reader.read("x.weight").float(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["hqq", "aqlm", "quanto", None])
def test_formats_that_are_not_read_are_refused_with_the_repo_to_use(method: str | None) -> None:
    with pytest.raises(UnsupportedModel, match=str(method or "unnamed")) as caught:
        read({"x.weight": make_weight()}, quant_method=method).infos()
    assert "'acme/model'" in str(caught.value.hint)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8", "mxfp4"])
def test_a_config_that_names_a_format_which_no_tensor_has_is_refused(method: str) -> None:
    with pytest.raises(UnsupportedModel, match="no tensor is stored in that format"):
        read({"x.weight": make_weight()}, quant_method=method).infos()


@pytest.mark.parametrize(
    ("repo", "expected"),
    [
        ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", "unsloth/Llama-3.2-1B-Instruct"),
        ("unsloth/Qwen3-4B-unsloth-bnb-4bit", "unsloth/Qwen3-4B"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen3-8B-FP8", "Qwen/Qwen3-8B"),
        ("casperhansen/llama-3-8b-instruct-awq", "casperhansen/llama-3-8b-instruct"),
        ("RedHatAI/Meta-Llama-3.1-8B-quantized.w4a16", "RedHatAI/Meta-Llama-3.1-8B"),
        ("acme/plain", None),
    ],
)
def test_the_unquantized_repo_is_guessed_from_the_name(repo: str, expected: str | None) -> None:
    hint = suggest_unquantized(repo)
    assert (f"'{expected}'" in hint) if expected else ("probably" not in hint)


@pytest.mark.parametrize(
    "change",
    [
        {"x.qzeros": torch.zeros(4, 3, dtype=torch.int32)},
        {"x.scales": torch.zeros(4, 31).half()},
        {"x.g_idx": torch.full((64,), 9, dtype=torch.int32)},
        {"x.g_idx": torch.zeros(63, dtype=torch.int32)},
    ],
)
def test_parts_that_contradict_each_other_are_refused(change: dict[str, Tensor]) -> None:
    numbers, zeros, scales = make_integers(4)
    tensors = {
        "x.qweight": pack(numbers.T.contiguous(), 4).T.contiguous(),
        "x.qzeros": pack(zeros, 4),
        "x.scales": scales,
    }
    with pytest.raises(UnsafeFile):
        read(tensors | change, quant_method="gptq", bits=4).read("x.weight")


def test_a_shape_that_the_packed_numbers_do_not_hold_is_refused_before_memory_is_taken() -> None:
    packed, state = bnb.quantize_4bit(make_weight(), blocksize=64, quant_type="nf4")
    state.shape = torch.Size([2**20, 2**20])
    parts = {f"x.weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    with pytest.raises(UnsafeFile, match="claims the shape"):
        read({"x.weight": packed, **parts}, quant_method="bitsandbytes").infos()


def test_needed_tensors_are_declared_by_their_parts() -> None:
    packed, state = bnb.quantize_4bit(make_weight(), blocksize=64, quant_type="nf4")
    parts = {f"x.weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    inner = StoredTensors({"x.weight": packed, "y.weight": make_weight(), **parts})
    reader = DequantizingReader(inner, {"quant_method": "bitsandbytes"}, "acme/model")
    reader.infos()
    inner.reads.clear()
    reader.declare_needed(["x.weight", "y.weight"])
    assert set(inner.reads) == {"x.weight", "y.weight", *parts}
