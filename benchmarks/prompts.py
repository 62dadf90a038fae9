"""What it saves to leave a prompt's logits out when the answer behind it is judged.

    python -m benchmarks.prompts [--examples 48]

Answers of two real tasks behind their prompts, by Gemma-3-270M and SmolLM2-135M on one thread:
log-probabilities of every token of a row (`of_all`, the floor) against `rebase.models.logprobs`, which asks
for those of the answer. CPU seconds of one after the other, their ratio, and the largest difference.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import torch

from rebase.hub.local import LocalHub
from rebase.models.causal_lm import CausalLM, load_base_model
from rebase.models.logprobs import compute_token_logprobs, gather_logprobs, get_max_logit_positions, pad_right
from rebase.models.model_reader import open_model
from rebase.models.weights import ModelWeights
from rebase.schemas.repos import RepoRef
from support.real_models import GEMMA3, SMOLLM2, RealModel, prepare
from support.real_repos import place
from support.real_tasks import HELD_OUT_SEED, TASKS

_FORM = "{model:24} {task:8} {tokens:>7} {asked:>6} {all_s:>8.1f} {asked_s:>8.1f} {ratio:>6.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row for each model and task, and the JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prompts")
    parser.add_argument("--examples", type=int, default=48)
    count = parser.parse_args(arguments).examples
    torch.set_num_threads(1)
    print(f"{'model':24} {'task':8} {'tokens':>7} {'asked':>6} {'all, s':>8} {'asked, s':>8} {'ratio':>6}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="prompts-") as scratch:
        for model in (GEMMA3, SMOLLM2):
            base = _open(model, Path(scratch))
            for task in ("desk", "orders"):
                rows.append({"model": model.name, "task": task} | _compared(base, task, count))
                print(_FORM.format(**rows[-1]), flush=True)
    print(json.dumps(rows))
    return 0


def of_all(base: CausalLM, rows: Sequence[list[int]]) -> list[list[float]]:
    """log P of each id of each row but its first, by the logits of every place."""
    found: list[list[float]] = []
    size = max(1, get_max_logit_positions(base) // max(map(len, rows)))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        ids = pad_right(part)
        with torch.no_grad():
            logits = base.model(input_ids=ids, use_cache=False).logits[:, :-1]
            logs = gather_logprobs(logits, ids[:, 1:]).tolist()
        found += [logs[at][: len(row) - 1] for at, row in enumerate(part)]
    return found


def _compared(base: CausalLM, task: str, count: int) -> dict[str, Any]:
    examples = TASKS[task].examples(HELD_OUT_SEED, count)
    rows = [base.encode(one.prompt + one.answer).ids for one in examples]
    firsts = [len(base.encode(one.prompt).ids) for one in examples]
    whole, all_s = _timed(lambda: of_all(base, rows))
    found, asked_s = _timed(lambda: compute_token_logprobs(base, rows, firsts))
    apart = (
        abs(ours - theirs)
        for row, first, mine in zip(whole, firsts, found, strict=True)
        for theirs, (ours, _) in zip(row[first - 1 :], mine, strict=True)
    )
    return {
        "tokens": sum(map(len, rows)),
        "asked": sum(map(len, found)),
        "all_s": round(all_s, 2),
        "asked_s": round(asked_s, 2),
        "ratio": round(all_s / asked_s, 2),
        "largest_difference": max(apart),
    }


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.process_time()
    return work(), time.process_time() - begun


def _open(model: RealModel, root: Path) -> CausalLM:
    place(prepare(model), root / model.repo_id)
    hub = LocalHub(root)
    config, reader, tokenizer = open_model(hub, hub.resolve(RepoRef(repo_id=model.repo_id)))
    assert tokenizer is not None
    return load_base_model(ModelWeights(config, reader), reader, tokenizer, torch.device("cpu"))


if __name__ == "__main__":
    sys.exit(main())
