"""Small trained adapters that are committed, so that no test waits for training.

    committed_adapters.adapter_folder()    an adapter as PEFT writes it
    committed_adapters.losses(folder)      held-out loss of its base before and after

    PYTHONPATH=.:tests python -m support.committed_adapters    trains them again, in about ten minutes

Both learn the harbour log, one on each of the real bases: rank 1 on all seven modules, in bfloat16, half a
megabyte each. They lie below tests/data/adapters as `<name>/files/…`, with `<name>/record.json` beside it:
the recipe, what was learnt, and the sha256 of each file, which is checked at every use. Training is seeded
and runs on one CPU thread; another processor may round otherwise, which changes the bytes and hardly what
was learnt.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from support import prepared, real_adapter
from support.prepared import NotPrepared
from support.real_adapter import HARBOUR_LOG, Recipe
from support.real_models import GEMMA3, SMOLLM2, RealModel

FOLDER = Path(__file__).resolve().parents[1] / "data" / "adapters"
# One direction a module learns as much as sixteen when each step is five times as long.
RECIPE = Recipe(steps=32, rank=1, alpha=2, learning_rate=5e-3)
BASES = (SMOLLM2, GEMMA3)


def adapter_folder(base: RealModel = SMOLLM2, task: str = HARBOUR_LOG, *, root: Path = FOLDER) -> Path:
    """Folder with adapter_config.json and adapter_model.safetensors. Raises NotPrepared."""
    found = prepared.intact(root / _name(base, task))
    if found is None:
        raise NotPrepared(
            f"{root / _name(base, task)} is not as it was committed; restore it with git, "
            "or train it again: PYTHONPATH=.:tests python -m support.committed_adapters"
        )
    return found


def losses(adapter: Path) -> dict[str, float]:
    """Held-out loss of its base in nats per token: `before` (alone) and `after` (with the adapter)."""
    noted: dict[str, float] = prepared.record(adapter)["held_out"]
    return noted


def _name(base: RealModel, task: str) -> str:
    return f"{task}-{base.name}"


def _train(base: RealModel, files: Path) -> dict[str, Any]:
    noted = real_adapter.train(base, HARBOUR_LOG, RECIPE, files, half=True)
    del noted["seconds"]  # so that the same adapter gives the same record
    (files / "README.md").unlink()  # PEFT's form, with nothing filled in
    _sort_modules(files / "adapter_config.json")
    return noted


def _sort_modules(file: Path) -> None:
    """PEFT writes them in the order of a set, another one in every process."""
    config = json.loads(file.read_text())
    config["target_modules"].sort()
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main() -> None:
    """Train all of them anew, over what is there."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for base in BASES:
        prepared.fill(FOLDER / _name(base, HARBOUR_LOG), partial(_train, base))


if __name__ == "__main__":
    try:
        main()
    except NotPrepared as problem:
        sys.exit(f"error: {problem}")
