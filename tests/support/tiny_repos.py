"""A local hub folder with two related tiny bases, one of another family, and an adapter of the first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.synthetic import byte_level_tokenizer
from support.tiny_models import save_adapter, save_base, tiny_model

OLD, NEW, OTHER, ADAPTER = "acme/old", "acme/new", "acme/other", "acme/skill"
_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_hub(root: Path) -> Path:
    """OLD and NEW are Llamas that differ by a few percent; OTHER is a wider GPT-NeoX; ADAPTER fits OLD."""
    save_base(root / OLD, "llama", seed=0)
    save_base(root / NEW, "llama", seed=0)
    perturb(root / NEW, 0.02)
    save_base(root / OTHER, "gpt_neox", seed=5, hidden_size=48, num_hidden_layers=3)
    for repo in (OLD, NEW, OTHER):
        (root / repo / "tokenizer.json").write_text(json.dumps(tokenizer(96)))
    save_adapter(root / ADAPTER, tiny_model("llama", seed=0), r=4, target_modules=_MODULES)
    edit_json(root / ADAPTER / "adapter_config.json", base_model_name_or_path=OLD, revision=None)
    return root


def perturb(folder: Path, share: float) -> None:
    """Add Gaussian noise of `share` of each tensor's norm to a base's matrices."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    generator = torch.Generator().manual_seed(7)
    moved = {}
    for name, tensor in sorted(load_file(path).items()):
        noise = torch.randn(tensor.shape, generator=generator)
        moved[name] = tensor + share * tensor.norm() / noise.norm() * noise if tensor.ndim == 2 else tensor
    save_file(moved, path, metadata={"format": "pt"})


def edit_json(path: Path, **changes: Any) -> None:
    """Change some fields of a JSON file; a value of `...` removes the field."""
    document = json.loads(path.read_text())
    document |= changes
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not ...}))


def tokenizer(size: int) -> dict[str, Any]:
    """A byte-level BPE tokenizer.json with `size` distinct two-letter tokens."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return byte_level_tokenizer(letters[n // 26] + letters[n % 26] for n in range(size))
