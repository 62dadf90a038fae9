"""A checkpoint of llama2.c, its tokenizer behind it, as a folder that Transformers and the pipeline read.

Seven int32 (width, hidden width, layers, heads, heads of keys, vocabulary, context), then float32 tensors,
each for all layers. Rotary pairs stand beside each other there; Transformers wants the first halves first.
The tokenizer is a list of pieces with scores, from which merges follow: a piece is merged from any two that
make it, those with the higher score first.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_SPECIAL = ("<unk>", "<s>", "</s>")


def convert(file: Path, files: Path) -> None:
    """Write config, weights and tokenizer into `files`."""
    import numpy as np
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    data = file.read_bytes()
    width, hidden, layers, heads, kv, vocabulary, context = struct.unpack_from("<7i", data)
    at = 28

    def take(*shape: int) -> Tensor:
        nonlocal at
        found = np.frombuffer(data, "<f4", int(np.prod(shape)), at).reshape(shape)
        at += found.nbytes
        return torch.from_numpy(found.copy())

    keys = width * kv // heads
    weights = {"model.embed_tokens.weight": take(vocabulary, width)}
    per_layer = {
        "input_layernorm": take(layers, width),
        "self_attn.q_proj": _halves_first(take(layers, width, width), heads),
        "self_attn.k_proj": _halves_first(take(layers, keys, width), kv),
        "self_attn.v_proj": take(layers, keys, width),
        "self_attn.o_proj": take(layers, width, width),
        "post_attention_layernorm": take(layers, width),
        "mlp.gate_proj": take(layers, hidden, width),
        "mlp.down_proj": take(layers, width, hidden),
        "mlp.up_proj": take(layers, hidden, width),
    }
    for name, stacked in per_layer.items():
        for layer in range(layers):
            weights[f"model.layers.{layer}.{name}.weight"] = stacked[layer].clone()
    weights["model.norm.weight"] = take(width)
    at += 2 * 4 * context * (width // heads // 2)  # cosines and sines, which the config implies
    save_file(weights, files / "model.safetensors", metadata={"format": "pt"})
    LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(files)
    _write_tokenizer(_pieces(data, at, vocabulary), files)


def _halves_first(stacked: Tensor, heads: int) -> Tensor:
    """(layers, rows, width), whose rows come in pairs, with each head's first ones in front."""
    layers, rows, width = stacked.shape
    pairs = stacked.view(layers, heads, rows // heads // 2, 2, width)
    return pairs.transpose(2, 3).reshape(layers, rows, width)


def _pieces(data: bytes, at: int, count: int) -> list[tuple[str, float]]:
    """Behind the length of the longest: of each its score, its length, its bytes."""
    at += 4
    found = []
    for _ in range(count):
        score, size = struct.unpack_from("<fi", data, at)
        found.append((data[at + 8 : at + 8 + size].decode(), score))
        at += 8 + size
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes behind the tokenizer")
    return found


def _write_tokenizer(pieces: list[tuple[str, float]], files: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    names = [*_SPECIAL, *(piece.replace(" ", "▁") for piece, _ in pieces[3:])]
    vocabulary = {name: id_ for id_, name in enumerate(names)}
    merges = []
    for id_ in range(259, len(names)):  # behind the special pieces and the single bytes
        name = names[id_]
        for cut in range(1, len(name)):
            left, right = name[:cut], name[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((-pieces[id_][1], vocabulary[left], vocabulary[right], left, right))
    model = models.BPE(
        vocabulary,
        [(left, right) for *_, left, right in sorted(merges)],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(files)
