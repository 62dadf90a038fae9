"""Training of LoRA adapters for the tasks of `real_tasks`, on SmolLM2-135M-Instruct unless told otherwise.

    real_adapter.trained_adapter()    the folder as PEFT writes it (first time: about two minutes)
    real_adapter.train(...)           the same by any recipe, into any folder

Tests take the small adapters of `committed_adapters`; these here are what benchmarks move.

r = 16 on all seven modules, some dozen steps of plain AdamW on one thread. The entry is named after the
recipe's hash (settings, training text, base weights), so a changed recipe trains anew. With
REBASE_TEST_DEVICE=cuda it is trained on a GPU, under a name of its own: the bytes differ.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support import prepared, real_models
from support.prepared import NotPrepared, timed
from support.real_models import SMOLLM2, RealModel

if TYPE_CHECKING:
    from torch import Tensor

    from support.real_tasks import Row, Task

HARBOUR_LOG = "harbour-log"
HELD_OUT_ENTRIES = 20
DEVICE = os.environ.get("REBASE_TEST_DEVICE", "cpu")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the trained bytes."""

    steps: int = 24
    batch: int = 4
    tokens: int = 96  # per sequence
    rank: int = 16
    alpha: int = 32
    learning_rate: float = 1e-3
    warmup: int = 4
    entries: int = 400
    seed: int = 7
    modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def digest(self, base: RealModel, task: Task) -> str:
        """Hash of the settings, the text and the base's weights."""
        from support.real_tasks import TRAINING_SEED

        end = "" if task.tokens is not None else "<eos>"
        text = "".join(e.prompt + e.answer + end for e in task.examples(TRAINING_SEED, self.entries))
        whole = asdict(self) | {"text": text, "base": base.sha256}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


RECIPE = Recipe()
RECIPES = {
    HARBOUR_LOG: RECIPE,
    "orders": Recipe(steps=36, batch=8, entries=288),
    "desk": Recipe(steps=40, batch=12, entries=480),
}


def trained_adapter(base: RealModel = SMOLLM2, task: str = HARBOUR_LOG) -> Path:
    """Folder with adapter_config.json and adapter_model.safetensors. Raises NotPrepared."""
    real_models.prepare(base)
    return prepared.prepared_by(_entry(base, task), "support.real_adapter", base.name, task)


def _entry(base: RealModel, task: str) -> str:
    from support.real_tasks import TASKS

    where = "" if DEVICE == "cpu" else f"-{DEVICE}"
    return f"{task}-lora-{base.name}-{RECIPES[task].digest(base, TASKS[task])[:12]}{where}"


def row_losses(model: Any, tokenizer: Any, entries: int = HELD_OUT_ENTRIES) -> Tensor:
    """Mean nats per token of each sequence of log entries that were not trained on. (n,) float32."""
    from support.real_tasks import TASKS, score

    return score(model, tokenizer, TASKS[HARBOUR_LOG], entries).nats


def held_out_loss(model: Any, tokenizer: Any) -> float:
    """Mean nats per token on entries that were not trained on."""
    return float(row_losses(model, tokenizer).mean())


def train(
    source: RealModel,
    name: str,
    recipe: Recipe,
    files: Path,
    *,
    half: bool = False,
    held_out: int | None = None,
) -> dict[str, Any]:
    """Train on the task of that name, save the adapter into `files` and tell what it learnt, measured on so
    many held-out examples. `half`: saved, and measured, as bfloat16 holds it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from support.real_tasks import TASKS, TRAINING_SEED, score

    task = TASKS[name]
    torch.set_num_threads(1)  # the sums' order, hence the bytes, must not depend on the machine's cores
    torch.manual_seed(recipe.seed)
    seconds: dict[str, float] = {}
    base_folder = real_models.prepare(source)
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    base: Any = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    base = base.to(DEVICE)
    base.name_or_path = source.repo_id  # what the adapter names as its base
    config = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, target_modules=list(recipe.modules), task_type="CAUSAL_LM"
    )
    size = held_out or (HELD_OUT_ENTRIES if task.tokens is not None else task.held_out)
    with timed(seconds, "loss before"):
        before = score(base, tokenizer, task, size)
    model = get_peft_model(base, config)
    with timed(seconds, f"train {recipe.steps} steps"):
        _descend(model, task.rows(tokenizer, TRAINING_SEED, recipe.entries), recipe)
    if half:
        _round(model)
    with timed(seconds, "loss after"):
        after = score(model, tokenizer, task, size)
    model.save_pretrained(str(files), save_embedding_layers=False)
    if half:
        _halve(files / "adapter_model.safetensors")
    learnt = {
        "before": round(float(before.nats.mean()), 4),
        "after": round(float(after.nats.mean()), 4),
        "right_before": round(float(before.right.mean()), 4),
        "right_after": round(float(after.right.mean()), 4),
    }
    print(f"  {name} on {source.name}: {learnt}", file=sys.stderr)
    return {"recipe": asdict(recipe), "held_out": learnt, "seconds": seconds}


def _round(model: Any) -> None:
    """What was trained takes the values that bfloat16 has."""
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16).to(parameter.dtype)


def _halve(file: Path) -> None:
    """The same tensors in bfloat16."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def _descend(model: Any, rows: list[Row], recipe: Recipe) -> None:
    """AdamW with linear warm-up and decay over batches drawn in a seeded order."""
    import torch

    from support.real_tasks import logits_at, padded

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=0.0)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(recipe.seed)).tolist()
    needed = recipe.steps * recipe.batch
    if len(rows) < needed:
        raise NotPrepared(f"the recipe needs {needed} sequences but its text makes only {len(rows)}")
    model.train()
    for step in range(recipe.steps):
        share = min((step + 1) / recipe.warmup, (recipe.steps - step) / (recipe.steps - recipe.warmup))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * share
        ids, learnt = padded(
            [rows[at] for at in order[step * recipe.batch : (step + 1) * recipe.batch]], model.device
        )
        loss = torch.nn.functional.cross_entropy(logits_at(model, ids, learnt), ids[:, 1:][learnt])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 5 == 0:
            print(f"  step {step}: {loss.item():.3f}", file=sys.stderr, flush=True)


def main(base: str, task: str) -> None:
    """Train one adapter into its entry."""
    model = real_models.EVERY[base]
    prepared.make(_entry(model, task), partial(train, model, task, RECIPES[task]))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except NotPrepared as problem:
        sys.exit(f"error: {problem}")
