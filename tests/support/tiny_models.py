"""Tiny random base models of every supported family, and PEFT adapters on them, built offline.

Models come from transformers' own classes and adapters from PEFT's own writer, so that both libraries are the
witnesses against which reading and writing is tested.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rebase.lora.tensors import TensorInfo
from rebase.models.weights import ModelWeights

_LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_NO_HEAD_DIM = {key: value for key, value in _LLAMA_LIKE.items() if key != "head_dim"}

TINY_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA_LIKE,
    "mistral": _LLAMA_LIKE,
    "qwen2": _NO_HEAD_DIM,
    "qwen3": _LLAMA_LIKE | {"head_dim": 16},
    "gemma": _LLAMA_LIKE | {"head_dim": 16},
    "gemma2": _LLAMA_LIKE | {"head_dim": 16},
    "gemma3_text": _LLAMA_LIKE | {"head_dim": 16},
    "phi3": _NO_HEAD_DIM,
    "gpt2": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": 96,
        "n_positions": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt_neox": {key: value for key, value in _NO_HEAD_DIM.items() if key != "num_key_value_heads"},
}


class FolderReader:
    """TensorReader over the safetensors files of one folder, or over tensors in memory."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)
        self.reads: list[str] = []

    @classmethod
    def of(cls, folder: Path) -> FolderReader:
        """Everything that `*.safetensors` in the folder hold."""
        tensors: dict[str, Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            tensors |= load_file(path)
        return cls(tensors)

    def infos(self) -> dict[str, TensorInfo]:
        return {
            name: TensorInfo(_DTYPE_NAMES[tensor.dtype], tuple(tensor.shape))
            for name, tensor in self.tensors.items()
        }

    def read(self, name: str) -> Tensor:
        self.reads.append(name)
        return self.tensors[name]

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        self.reads.append(name)
        return self.tensors[name][start:stop]


_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int8: "I8",
}


def tiny_model(model_type: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random model in eval mode. Every parameter is random, so that norms, biases and scales matter."""
    config = AutoConfig.for_model(model_type, **{**TINY_CONFIGS[model_type], **overrides})
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def save_base(folder: Path, model_type: str, *, seed: int = 0, **overrides: Any) -> Path:
    """A tiny base model as a Hub-like folder: config.json and safetensors."""
    tiny_model(model_type, seed=seed, **overrides).save_pretrained(folder, safe_serialization=True)
    return folder


def open_base(folder: Path) -> ModelWeights:
    """The folder's weights as the code under test reads them."""
    return ModelWeights(json.loads((folder / "config.json").read_text()), FolderReader.of(folder))


def weights_of(model: PreTrainedModel) -> ModelWeights:
    """A live model's weights as the code under test reads them."""
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    return ModelWeights(model.config.to_dict(), FolderReader(state))


def with_adapter(model: PreTrainedModel, *, seed: int = 1, **lora: Any) -> PeftModel:
    """The model wrapped by PEFT with a LoRA whose every trainable tensor is random (B too)."""
    torch.manual_seed(seed)
    peft_model = get_peft_model(model, LoraConfig(**{"task_type": "CAUSAL_LM", **lora}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=generator))
            elif "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return peft_model.eval()


def save_adapter(folder: Path, model: PreTrainedModel, *, seed: int = 1, **lora: Any) -> Path:
    """A random PEFT LoRA for the model as an adapter folder."""
    with_adapter(model, seed=seed, **lora).save_pretrained(str(folder))
    return folder


def open_adapter_folder(folder: Path) -> tuple[dict[str, Any], FolderReader]:
    """The adapter's raw config and tensors."""
    return json.loads((folder / "adapter_config.json").read_text()), FolderReader.of(folder)


def names_in(path: Path) -> list[str]:
    """Tensor names of one safetensors file."""
    with safe_open(path, framework="pt") as file:
        return sorted(file.keys())


def token_batch(vocabulary: int = 96, *, seed: int = 0) -> Tensor:
    """A (2, 12) batch of token ids."""
    return torch.randint(3, vocabulary, (2, 12), generator=torch.Generator().manual_seed(seed))
