"""A close release of SmolLM2 in a local hub folder, and a small adapter to move to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from support.real_models import SMOLLM2
from support.real_repos import ADAPTER_REPO

NEXT_RELEASE = "harbour/SmolLM2-135M-next"
NOISE = 0.05  # of each weight's own standard deviation: a small step of further training

PART_REPO = "harbour/log-lora-part"
PART_LAYERS = (0, 10, 20, 29)  # of 30; with these alone the trained adapter still gains 1.7 of its 4.9 nats

SLIM_REPO = "harbour/log-lora-slim"
SLIM_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")


def add_next_release(root: Path) -> Path:
    """SmolLM2 with every linear weight slightly changed."""
    folder = root / NEXT_RELEASE
    shutil.copytree(root / SMOLLM2.repo_id, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    weights = load_file(root / SMOLLM2.repo_id / "model.safetensors")
    noise = torch.Generator().manual_seed(5)
    for name, weight in weights.items():
        if name.endswith("_proj.weight"):
            step = torch.randn(weight.shape, generator=noise) * weight.float().std() * NOISE
            weights[name] = (weight.float() + step).to(weight.dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def add_part_of_the_adapter(root: Path) -> Path:
    """The trained adapter in a few layers only: a sixth of the work to move, and still a skill to lose."""
    config = {"layers_to_transform": PART_LAYERS}
    return _cut(root, PART_REPO, config, lambda name: _layer(name) in PART_LAYERS)


def add_slim_adapter(root: Path) -> Path:
    """The trained adapter in every layer, on `SLIM_MODULES`: of the three large matrices of an MLP, whose
    factors are most of the work between two families, only one."""
    return _cut(
        root,
        SLIM_REPO,
        {"target_modules": list(SLIM_MODULES)},
        lambda name: any(f".{module}." in name for module in SLIM_MODULES),
    )


def add_pool(root: Path) -> dict[str, Any]:
    """A pool for the move to the release: the part itself, and two of the same size that point elsewhere.

    Its body as `--pool` takes it. Every anchor is the same on both bases: between them, copying is right.
    """
    tensors = load_file(root / PART_REPO / "adapter_model.safetensors")
    anchors = [{"source": PART_REPO, "target": PART_REPO, "domain": "log"}]
    for seed in (1, 2):
        name = f"{PART_REPO}-other-{seed}"
        shutil.copytree(root / PART_REPO, root / name)
        noise = torch.Generator().manual_seed(seed)
        other = {
            key: t[torch.randperm(t.shape[0], generator=noise)] if "lora_B" in key else t.flip(1).contiguous()
            for key, t in tensors.items()
        }
        save_file(other, root / name / "adapter_model.safetensors", metadata={"format": "pt"})
        anchors.append({"source": name, "target": name, "domain": "elsewhere"})
    return {"source": SMOLLM2.repo_id, "target": NEXT_RELEASE, "anchors": anchors}


def _cut(root: Path, repo: str, config: dict[str, Any], keep: Callable[[str], bool]) -> Path:
    """A repo with some tensors of the trained adapter, and a config that says so."""
    folder = root / repo
    folder.mkdir(parents=True)
    whole = json.loads((root / ADAPTER_REPO / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(whole | config))
    tensors = load_file(root / ADAPTER_REPO / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if keep(name)}
    save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def _layer(name: str) -> int:
    return int(name.partition(".layers.")[2].partition(".")[0])
