"""How well a bundled model, with or without an adapter, answers held-out questions of the bundled skill.

python -m examples.evaluate MODEL_DIR examples/tasks/harbor-sql.jsonl [--adapter DIR] [--sample N]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch.nn.functional import cross_entropy

from examples.text.queries import Example, read_task

_BATCH: Final = 32
_IGNORED: Final = -100  # label of a position that counts for nothing


def load(model_dir: Path, adapter_dir: Path | None = None) -> tuple[Any, Any]:
    """Model in float32 and tokenizer from local folders, the adapter on top when one is given. Nothing is
    downloaded; what the adapter's config says of its base is not looked at."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    if adapter_dir is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, os.fspath(adapter_dir))
    return model.eval(), tokenizer


def encode(items: Sequence[Example], tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, both (items, longest) int64. A row is <|endoftext|>, prompt, answer,
    <|endoftext|>; the labels hold the answer and the closing token only. Rows are padded on the right,
    where causal models do not look."""
    end = int(tokenizer.eos_token_id)
    rows, starts = [], []
    for item in items:
        prompt = [end, *tokenizer(item.prompt, add_special_tokens=False)["input_ids"]]
        rows.append([*prompt, *tokenizer(item.answer, add_special_tokens=False)["input_ids"], end])
        starts.append(len(prompt))
    ids = torch.full((len(rows), max(map(len, rows))), end)
    labels = torch.full_like(ids, _IGNORED)
    for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[number, : len(row)] = torch.tensor(row)
        labels[number, start : len(row)] = torch.tensor(row[start:])
    return ids, labels


def answer_loss(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Summed cross-entropy in nats over the labelled tokens, and how many they are."""
    logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    targets = labels[:, 1:].flatten()
    total = cross_entropy(logits.float(), targets, ignore_index=_IGNORED, reduction="sum")
    return total, int((targets != _IGNORED).sum())


@torch.inference_mode()
def held_out_loss(model_dir: Path, adapter_dir: Path | None, task_file: Path) -> float:
    """Mean nats per answer token over every example of `task_file`; lower is better. The figures of two
    models are comparable only when their tokenizers are the same."""
    model, tokenizer = load(model_dir, adapter_dir)
    items, total, count = read_task(task_file), 0.0, 0
    for start in range(0, len(items), _BATCH):
        loss, tokens = answer_loss(model, *encode(items[start : start + _BATCH], tokenizer))
        total, count = total + float(loss), count + tokens
    return total / count


@torch.inference_mode()
def sample_answers(
    model_dir: Path, adapter_dir: Path | None, task_file: Path, count: int
) -> list[tuple[Example, str]]:
    """Greedy answers to the first `count` questions, to be read by people."""
    model, tokenizer = load(model_dir, adapter_dir)
    answers = []
    for item in read_task(task_file)[:count]:
        prompt = [tokenizer.eos_token_id, *tokenizer(item.prompt, add_special_tokens=False)["input_ids"]]
        ids = torch.tensor([prompt])
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=64,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
        answers.append((item, tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True)))
    return answers


def main() -> None:
    """Print the held-out loss, and samples when asked."""
    parser = argparse.ArgumentParser(description="Held-out loss of a bundled model on a bundled task.")
    parser.add_argument("model", type=Path)
    parser.add_argument("task", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="also print N greedy answers")
    arguments = parser.parse_args()
    print(f"{held_out_loss(arguments.model, arguments.adapter, arguments.task):.4f} nats per answer token")
    for item, answer in sample_answers(arguments.model, arguments.adapter, arguments.task, arguments.sample):
        print(f"\n{item.prompt}\n  wanted {item.answer}\n  wrote  {answer}")


if __name__ == "__main__":
    main()
