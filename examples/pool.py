"""Train the bundled anchor pool: every task of `examples.text.formats` on both harbor models.

    python -m examples.pool --examples DIR [--smoke]

Adds `tiny/harbor-<task>-lora-1` and `-2` to DIR/hub, and writes DIR/anchor-pool.json, the body of
`POST /anchor-pools`.
The bases must be in DIR/hub already (`python -m examples.build`). About six minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from examples.build import deterministic
from examples.cards import anchor_card
from examples.evaluate import load
from examples.recipes import Say
from examples.text.formats import TASKS, Task, generate_task_examples
from examples.train import Schedule, train_adapter
from rebase.hub.local import LocalHub
from rebase.schemas.repos import RepoRef

BASES: Final = ("harbor-1", "harbor-2")
RANK: Final = 4
FULL: Final = Schedule(steps=200, rate=3e-3)
SMOKE: Final = Schedule(steps=2, rate=1e-3, batch=2)


def get_anchor_repo(task: Task, base: str) -> str:
    """The bundled adapter of a task on a base."""
    return f"tiny/harbor-{task.name.lower()}-lora-{base[-1]}"


def build_pool_body() -> dict[str, Any]:
    """The pool as `POST /anchor-pools` and `rebase pools add` take it."""
    source, target = ({"repo_id": f"tiny/{base}"} for base in BASES)
    anchors = [
        {
            "source": {"repo_id": get_anchor_repo(task, BASES[0])},
            "target": {"repo_id": get_anchor_repo(task, BASES[1])},
            "domain": task.domain,
        }
        for task in TASKS
    ]
    return {"name": "harbour tasks", "source": source, "target": target, "anchors": anchors}


def train_anchor(
    folder: Path, base_folder: Path, base: str, task: Task, schedule: Schedule, say: Say
) -> None:
    """One task's adapter, saved in bfloat16."""
    model, tokenizer = load(base_folder)
    model.config.name_or_path = model.name_or_path = f"tiny/{base}"
    items = generate_task_examples(task, "train", 400 if schedule is SMOKE else 4000, 20)
    seed = 30 + TASKS.index(task)  # the same start on both bases
    adapted = train_adapter(model, tokenizer, items, schedule, seed, say, rank=RANK)
    adapted.peft_config["default"].base_model_name_or_path = f"tiny/{base}"
    adapted.save_pretrained(folder, save_embedding_layers=False)
    weights = folder / "adapter_model.safetensors"
    bfloat16_weights = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(weights).items()}
    save_file(bfloat16_weights, weights, metadata={"format": "pt"})
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"] = sorted(config["target_modules"])  # a set in PEFT
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").write_text(
        anchor_card(get_anchor_repo(task, base), base, task.name), encoding="utf-8"
    )


def build_pool(examples: Path, schedule: Schedule = FULL, say: Say = print) -> None:
    """Every task on both bases, one commit each, and the pool's body. Repos must not exist yet."""
    hub = LocalHub(examples / "hub")
    with deterministic(), tempfile.TemporaryDirectory() as scratch:
        for base in BASES:
            pinned = hub.resolve(RepoRef(repo_id=f"tiny/{base}"))
            base_folder = hub.fetch(pinned, "config.json").parent
            for task in TASKS:
                repo = get_anchor_repo(task, base)
                folder = Path(scratch) / repo
                folder.mkdir(parents=True)
                say(f"{repo}: training on {base}")
                train_anchor(folder, base_folder, base, task, schedule, say)
                hub.publish(
                    repo,
                    folder,
                    message=f"Train {repo} with examples/pool.py",
                    parent=None,
                    private=False,
                    create_pr=False,
                )
    for lock in (examples / "hub").rglob(".lock"):
        lock.unlink()
    (examples / "anchor-pool.json").write_text(json.dumps(build_pool_body(), indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description="Train the bundled anchor pool.")
    parser.add_argument("--examples", type=Path, required=True, help="folder whose hub/ has the bases")
    parser.add_argument("--smoke", action="store_true", help="two steps of everything, for tests")
    arguments = parser.parse_args(argv)
    build_pool(arguments.examples, SMOKE if arguments.smoke else FULL)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
