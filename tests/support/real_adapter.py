"""Really trained LoRA adapters for the harbour log, on SmolLM2-135M-Instruct unless told otherwise.

    real_adapter.trained_adapter()    the folder as PEFT writes it (first time: about two minutes)
    real_adapter.losses(folder)       held-out loss of its base before and after

r = 16 on all seven modules, two dozen steps of plain AdamW on one thread. The entry is named after the
recipe's hash (settings, training text, base weights), so a changed recipe trains anew.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support import prepared, real_models
from support.harbour_log import page
from support.prepared import NotPrepared, timed
from support.real_models import SMOLLM2, RealModel

if TYPE_CHECKING:
    from torch import Tensor

TRAINING_SEED, HELD_OUT_SEED = 20, 21
HELD_OUT_ENTRIES = 20


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

    def digest(self, base: RealModel) -> str:
        """Hash of the settings, the text and the base's weights."""
        whole = asdict(self) | {"text": page(TRAINING_SEED, self.entries), "base": base.sha256}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


RECIPE = Recipe()


def trained_adapter(base: RealModel = SMOLLM2) -> Path:
    """Folder with adapter_config.json and adapter_model.safetensors. Raises NotPrepared."""
    real_models.prepare(base)
    return prepared.prepared_by(_entry(base), "support.real_adapter", base.name)


def losses(adapter: Path) -> dict[str, float]:
    """Held-out loss of its base in nats per token: `before` (alone) and `after` (with the adapter)."""
    noted: dict[str, float] = prepared.record(adapter)["held_out"]
    return noted


def _entry(base: RealModel) -> str:
    return f"harbour-log-lora-{base.name}-{RECIPE.digest(base)[:12]}"


def sequences(tokenizer: Any, text: str, tokens: int) -> Tensor:
    """The text as (n, tokens) ids, a BOS token in front of each row: Gemma is lost without it."""
    import torch

    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    body = tokens - 1
    rows = [[tokenizer.bos_token_id, *ids[at : at + body]] for at in range(0, len(ids) - body + 1, body)]
    return torch.tensor(rows)


def row_losses(model: Any, tokenizer: Any, entries: int = HELD_OUT_ENTRIES) -> Tensor:
    """Mean nats per token of each sequence of entries that were not trained on. (n,) float32."""
    import torch

    rows = sequences(tokenizer, page(HELD_OUT_SEED, entries), RECIPE.tokens)
    model.eval()
    parts = []
    with torch.no_grad():
        for batch in torch.split(rows, 4):
            logits = model(input_ids=batch).logits[:, :-1].float()
            nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
            parts.append(nats.mean(dim=1))
    return torch.cat(parts)


def held_out_loss(model: Any, tokenizer: Any) -> float:
    """Mean nats per token on entries that were not trained on."""
    return float(row_losses(model, tokenizer).mean())


def _train(source: RealModel, files: Path) -> dict[str, Any]:
    """Train by the recipe and save the adapter into `files`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)  # the sums' order, hence the bytes, must not depend on the machine's cores
    torch.manual_seed(RECIPE.seed)
    seconds: dict[str, float] = {}
    base_folder = real_models.prepare(source)
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    base.name_or_path = source.repo_id  # what the adapter names as its base
    config = LoraConfig(
        r=RECIPE.rank, lora_alpha=RECIPE.alpha, target_modules=list(RECIPE.modules), task_type="CAUSAL_LM"
    )
    with timed(seconds, "loss before"):
        before = held_out_loss(base, tokenizer)
    model = get_peft_model(base, config)
    with timed(seconds, f"train {RECIPE.steps} steps"):
        _descend(model, sequences(tokenizer, page(TRAINING_SEED, RECIPE.entries), RECIPE.tokens))
    with timed(seconds, "loss after"):
        after = held_out_loss(model, tokenizer)
    model.save_pretrained(str(files), save_embedding_layers=False)
    held_out = {"before": round(before, 4), "after": round(after, 4)}
    print(f"  held-out loss {held_out['before']} -> {held_out['after']} nats per token", file=sys.stderr)
    return {"recipe": asdict(RECIPE), "held_out": held_out, "seconds": seconds}


def _descend(model: Any, rows: Tensor) -> None:
    """AdamW with linear warm-up and decay over batches drawn in a seeded order."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RECIPE.learning_rate, weight_decay=0.0)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(RECIPE.seed))
    needed = RECIPE.steps * RECIPE.batch
    if len(rows) < needed:
        raise NotPrepared(f"the recipe needs {needed} sequences but its text makes only {len(rows)}")
    model.train()
    for step in range(RECIPE.steps):
        share = min((step + 1) / RECIPE.warmup, (RECIPE.steps - step) / (RECIPE.steps - RECIPE.warmup))
        for group in optimizer.param_groups:
            group["lr"] = RECIPE.learning_rate * share
        batch = rows[order[step * RECIPE.batch : (step + 1) * RECIPE.batch]]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 5 == 0:
            print(f"  step {step}: {loss.item():.3f}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        trained = real_models.MODELS[sys.argv[1]]
        prepared.make(_entry(trained), partial(_train, trained))
    except NotPrepared as problem:
        sys.exit(f"error: {problem}")
