"""Base models of real shapes with random weights whose spectra fall like real ones, in a local hub folder.

One layer's tensors are drawn and written again for every layer: factorising does not get cheaper by that
(cache keys name the tensor), while drawing thirty layers of a 3B model would take longer than the job.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

VOCABULARY = 8192
# Spectrum σ_j ∝ (1 + j/knee)^−1: with these knees (as a share of the smaller side) rank 320 holds the
# energy that was measured on a real 1.5B model: about 0.8 for q_proj, 0.6 for o_proj, 0.45 for the MLP.
_KNEE = {
    "q_proj": 0.06,
    "k_proj": 0.06,
    "v_proj": 0.15,
    "o_proj": 0.15,
    "gate_proj": 0.5,
    "up_proj": 0.5,
    "down_proj": 0.5,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Qwen2-like model."""

    name: str
    hidden: int
    inner: int
    heads: int
    kv_heads: int

    def config(self, layers: int) -> dict[str, Any]:
        """config.json."""
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": VOCABULARY,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-6,
            "hidden_act": "silu",
            "max_position_embeddings": 4096,
        }

    def sites(self) -> dict[str, tuple[int, int]]:
        """Module inside a layer → (o, i)."""
        kv = self.hidden // self.heads * self.kv_heads
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.inner, self.hidden),
            "mlp.up_proj": (self.inner, self.hidden),
            "mlp.down_proj": (self.hidden, self.inner),
        }


SMALL = Shape("qwen-1.5b-like", hidden=1536, inner=8960, heads=12, kv_heads=2)
LARGE = Shape("qwen-3b-like", hidden=2048, inner=11008, heads=16, kv_heads=2)


def realistic(o: int, i: int, role: str, generator: torch.Generator) -> Tensor:
    """(o, i) bf16 with random singular vectors and a falling spectrum: scaled Gaussian columns, mixed."""
    n = min(o, i)
    spectrum = 1.0 / (1.0 + torch.arange(n) / (_KNEE[role] * n))
    tall = torch.randn(max(o, i), n, generator=generator) * spectrum
    # Householder reflections mix the columns; a dense random rotation would cost an n³ factorisation.
    for _ in range(8):
        v = torch.randn(n, generator=generator)
        v /= v.norm()
        tall -= 2.0 * torch.outer(tall @ v, v)
    weight: Tensor = tall / tall.norm() * (0.02 * (o * i) ** 0.5)
    return (weight if o >= i else weight.T).to(torch.bfloat16).contiguous()


def write_base(hub: Path, shape: Shape, layers: int, seed: int) -> str:
    """A base in the hub folder, one shard a layer; returns its repo id."""
    generator = torch.Generator().manual_seed(seed)
    repo_id = f"bench/{shape.name}-{layers}"
    folder = hub / repo_id
    folder.mkdir(parents=True)
    drawn = {
        module: realistic(o, i, module.split(".")[1], generator) for module, (o, i) in shape.sites().items()
    }
    weight_map: dict[str, str] = {}
    for shard, tensors in _shards(shape, layers, drawn, generator):
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, shard))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(shape.config(layers)))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer()))
    return repo_id


def write_adapter(hub: Path, shape: Shape, layers: int, base: str, rank: int, seed: int) -> str:
    """A LoRA adapter of all seven modules on that base."""
    generator = torch.Generator().manual_seed(seed)
    repo_id = f"bench/adapter-{layers}"
    folder = hub / repo_id
    folder.mkdir(parents=True)
    tensors = {}
    for layer in range(layers):
        for module, (o, i) in shape.sites().items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, i, generator=generator) / i**0.5
            tensors[f"{name}.lora_B.weight"] = torch.randn(o, rank, generator=generator) * 0.01
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(module.split(".")[1] for module in shape.sites()),
        "base_model_name_or_path": base,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return repo_id


def _shards(
    shape: Shape, layers: int, drawn: dict[str, Tensor], generator: torch.Generator
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    ones = torch.ones(shape.hidden, dtype=torch.bfloat16)
    embedding = (torch.randn(VOCABULARY, shape.hidden, generator=generator) * 0.02).to(torch.bfloat16)
    yield "model-embeddings.safetensors", {"model.embed_tokens.weight": embedding, "model.norm.weight": ones}
    kv = shape.hidden // shape.heads * shape.kv_heads
    biases = {"q_proj": shape.hidden, "k_proj": kv, "v_proj": kv}
    for layer in range(layers):
        stem = f"model.layers.{layer}"
        tensors = {f"{stem}.{module}.weight": weight for module, weight in drawn.items()}
        tensors |= {
            f"{stem}.self_attn.{name}.bias": torch.zeros(width, dtype=torch.bfloat16)
            for name, width in biases.items()
        }
        tensors |= {f"{stem}.{norm}.weight": ones for norm in ("input_layernorm", "post_attention_layernorm")}
        yield f"model-{layer:03d}.safetensors", {name: tensor.clone() for name, tensor in tensors.items()}


def _tokenizer() -> dict[str, Any]:
    """Distinct three-letter tokens, the same for every synthetic base."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = np.random.default_rng(0).permutation(26**3)[:VOCABULARY]
    return byte_level_tokenizer(
        letters[w // 676] + letters[w // 26 % 26] + letters[w % 26] for w in words.tolist()
    )


def byte_level_tokenizer(tokens: Iterable[str]) -> dict[str, Any]:
    """A tokenizer.json of byte-level BPE whose token j is the j-th string."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocabulary = {token: position for position, token in enumerate(tokens)}
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
