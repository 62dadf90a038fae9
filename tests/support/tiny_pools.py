"""A pool of tiny adapters on the bases of `support.tiny_repos`, and an adapter that is a mixture of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from rebase.schemas.anchor_pools import Pool, PoolRequest
from support.tiny_models import save_adapter, tiny_model
from support.tiny_repos import NEW, OLD, edit_json

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DOMAINS = ("sql", "chat", "code")
MIXTURE = "acme/mixture"
SHARES = (0.6, 0.4)


def make_anchors(root: Path, count: int = 4) -> PoolRequest:
    """`acme/task-N-old` and `acme/task-N-new`: the same update on OLD and on NEW, close relatives."""
    for number in range(count):
        old, new = (root / f"acme/task-{number}-{which}" for which in ("old", "new"))
        save_adapter(old, tiny_model("llama", seed=0), seed=40 + number, r=2, target_modules=MODULES)
        edit_json(old / "adapter_config.json", base_model_name_or_path=OLD, revision=None)
        shutil.copytree(old, new)
        edit_json(new / "adapter_config.json", base_model_name_or_path=NEW, revision=None)
    return PoolRequest.model_validate(body(count))


def body(count: int = 4) -> dict[str, Any]:
    """The pool as a client would post it."""
    return {
        "name": "tiny tasks",
        "source": {"repo_id": OLD},
        "target": {"repo_id": NEW},
        "anchors": [
            {
                "source": {"repo_id": f"acme/task-{number}-old"},
                "target": {"repo_id": f"acme/task-{number}-new"},
                "domain": DOMAINS[number % 3],
            }
            for number in range(count)
        ],
    }


def make_mixture(root: Path) -> None:
    """MIXTURE, of twice the anchors' rank: 0.6 of the first anchor's update and 0.4 of the second's."""
    first, second = (root / f"acme/task-{number}-old" for number in (0, 1))
    shutil.copytree(first, root / MIXTURE)
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    mixed = {
        name: torch.cat([SHARES[0] * one[name], SHARES[1] * two[name]], 1)
        if "lora_B" in name
        else torch.cat([one[name], two[name]], 0)
        for name in one
    }
    save_file(mixed, root / MIXTURE / "adapter_model.safetensors", metadata={"format": "pt"})
    config = json.loads((first / "adapter_config.json").read_text())
    edit_json(root / MIXTURE / "adapter_config.json", r=2 * config["r"], lora_alpha=2 * config["lora_alpha"])


class OnePool:
    """`rebase.schemas.anchor_pools.Pools` with one pool in it."""

    def __init__(self, request: PoolRequest, pool_id: str = "f" * 32) -> None:
        self.pool = Pool(pool_id, request)

    def get(self, pool_id: str) -> Pool:
        assert pool_id == self.pool.id
        return self.pool

    def find_for_bases(self, source_repo: str, target_repo: str) -> Pool | None:
        spec = self.pool.spec
        return self.pool if (source_repo, target_repo) == (spec.source.repo_id, spec.target.repo_id) else None
