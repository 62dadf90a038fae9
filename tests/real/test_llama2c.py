"""A checkpoint in llama2.c's layout becomes the model that it was written from."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from support import llama2c

WIDTH, HIDDEN, LAYERS, HEADS, CONTEXT = 16, 24, 2, 2, 32
SINGLE = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256))]
PIECES = [(piece, 0.0) for piece in SINGLE] + [
    ("th", -0.0),
    ("the", -1.0),
    (" the", -2.0),
    *((letter, -9.0) for letter in " theca"),
    ("at", -3.0),
]


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(PIECES),
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def folder(model: LlamaForCausalLM, tmp_path: Path) -> Path:
    weights = model.state_dict()

    def stacked(name: str) -> Tensor:
        return torch.stack([weights[f"model.layers.{layer}.{name}.weight"] for layer in range(LAYERS)])

    def beside_each_other(name: str, heads: int) -> Tensor:
        halves = stacked(name)
        return halves.view(LAYERS, heads, 2, -1, WIDTH).transpose(2, 3).reshape(halves.shape)

    tensors = [
        weights["model.embed_tokens.weight"],
        stacked("input_layernorm"),
        beside_each_other("self_attn.q_proj", HEADS),
        beside_each_other("self_attn.k_proj", 1),
        stacked("self_attn.v_proj"),
        stacked("self_attn.o_proj"),
        stacked("post_attention_layernorm"),
        stacked("mlp.gate_proj"),
        stacked("mlp.down_proj"),
        stacked("mlp.up_proj"),
        weights["model.norm.weight"],
        torch.zeros(2, CONTEXT, WIDTH // HEADS // 2),
    ]
    header = struct.pack("<7i", WIDTH, HIDDEN, LAYERS, HEADS, 1, len(PIECES), CONTEXT)
    pieces = [piece.encode() for piece, _ in PIECES]
    words = struct.pack("<i", max(map(len, pieces)))
    for piece, (_, score) in zip(pieces, PIECES, strict=True):
        words += struct.pack("<fi", score, len(piece)) + piece
    file = tmp_path / "model.bin"
    file.write_bytes(header + b"".join(one.float().numpy().tobytes() for one in tensors) + words)
    found = tmp_path / "folder"
    found.mkdir()
    llama2c.convert(file, found)
    return found


def test_it_computes_what_the_model_computes(model: LlamaForCausalLM, folder: Path) -> None:
    ids = torch.arange(20).reshape(1, 20) * 7 % len(PIECES)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        found = LlamaForCausalLM.from_pretrained(folder)(input_ids=ids).logits
    torch.testing.assert_close(found, expected)


def test_its_tokenizer_merges_by_score_and_falls_back_to_bytes(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("the cat é")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == [
        *("<s>", "the", "▁", "c", "at", "▁", "<0xC3>", "<0xA9>"),
    ]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the cat é"
