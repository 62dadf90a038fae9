"""Train the bundled models and lay them out as a local hub folder, from nothing but the text in this repo.

    python -m examples.build --out DIR [--smoke]

DIR receives `hub/` (the four repos), `tasks/harbor-sql.jsonl` (held-out questions) and `losses.json`.
About eight minutes on one core; the same machine gives the same bytes again. `--smoke` takes a few steps
of everything."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import torch

from examples import cards
from examples.evaluate import held_out_loss
from examples.recipes import FULL, SMOKE, BuildContext, Plan, Say, train_harbor, train_lantern, train_skill
from examples.text.queries import generate_examples, write_task
from rebase.errors import GapTooSmall
from rebase.evaluation.bootstrap import gap_recovered
from rebase.hub.local import LocalHub

TASK: Final = "harbor-sql.jsonl"


def _measure(context: BuildContext, task: Path) -> dict[str, float]:
    """Held-out loss of the skill for everything that the demo compares, and for the native adapter of
    `harbor-2`."""
    adapter = context.make_folder("harbor-sql-lora")
    pairs: dict[str, tuple[str, Path | None]] = {
        "harbor-1": ("harbor-1", None),
        "harbor-1 + adapter": ("harbor-1", adapter),
        "harbor-2": ("harbor-2", None),
        "harbor-2 + adapter as it is": ("harbor-2", adapter),
        "harbor-2 + native adapter": ("harbor-2", context.make_folder("oracle")),
        "lantern-1": ("lantern-1", None),
    }
    losses = {
        name: held_out_loss(context.make_folder(base), lora, task) for name, (base, lora) in pairs.items()
    }
    alone, copied, native = (
        -losses[f"harbor-2{what}"] for what in ("", " + adapter as it is", " + native adapter")
    )
    with suppress(GapTooSmall):  # the short form trains too little to have one
        losses["gap recovered by copying"] = gap_recovered(copied, base=alone, oracle=native)
    return losses


def _publish(context: BuildContext, hub_dir: Path) -> None:
    """One commit per repo; its sha is a hash of its content."""
    hub = LocalHub(hub_dir)
    for name, card in cards.CARDS.items():
        (context.make_folder(name) / "README.md").write_text(card, encoding="utf-8")
        published = hub.publish(
            f"tiny/{name}",
            context.make_folder(name),
            message=f"Train {name} with examples/build.py",
            parent=None,
            private=False,
            create_pr=False,
        )
        context.say(f"tiny/{name}@{published.commit}")
    for lock in hub_dir.rglob(".lock"):
        lock.unlink()


@contextmanager
def deterministic() -> Iterator[None]:
    """One thread (another number sums in another order) and deterministic kernels, for the time being."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)


def build(out: Path, plan: Plan, say: Say = print) -> dict[str, float]:
    """Everything, into `out`, whose `hub` must not exist yet. Returns (and writes) the losses by name, in
    nats."""
    if (out / "hub").exists():
        raise FileExistsError(f"{out / 'hub'} is there already; remove it or name another folder")
    (out / "tasks").mkdir(parents=True, exist_ok=True)
    task = out / "tasks" / TASK
    write_task(task, generate_examples("held-out", plan.held_out, 11))
    with deterministic(), tempfile.TemporaryDirectory() as scratch:
        context = BuildContext(Path(scratch), plan, say)
        losses = train_harbor(context) | train_lantern(context)
        train_skill(context, "harbor-1", "harbor-sql-lora")
        train_skill(context, "harbor-2", "oracle")
        losses |= _measure(context, task)
        _publish(context, out / "hub")
    (out / "losses.json").write_text(json.dumps({k: round(v, 4) for k, v in losses.items()}, indent=2) + "\n")
    for name, value in losses.items():
        say(f"{value:8.4f}  {name}")
    return losses


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description="Train the bundled example models.")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder that receives hub/, tasks/ and losses.json"
    )
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, for tests")
    arguments = parser.parse_args(argv)
    build(arguments.out, SMOKE if arguments.smoke else FULL)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
