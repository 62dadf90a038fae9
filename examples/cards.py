"""The short model cards of the bundled repos."""

from __future__ import annotations

from typing import Final

_HEAD: Final = """---
license: apache-2.0
language: en
{extra}---

# tiny/{name}

{text}

Trained by `examples/build.py` on text written for this project (`examples/text/README.md`). It is an example
for moving adapters about, small enough to travel with the code, and of no other use.
"""


def _card(name: str, text: str, extra: str) -> str:
    return _HEAD.format(name=name, text=text, extra=extra)


_MODEL: Final = "library_name: transformers\npipeline_tag: text-generation\n"

CARDS: Final = {
    "harbor-1": _card(
        "harbor-1",
        "A Llama of one million parameters that has read about one harbour town and its paperwork.",
        _MODEL,
    ),
    "harbor-2": _card(
        "harbor-2",
        "The next release of tiny/harbor-1: the same architecture and tokenizer, trained further on new\n"
        "text about the country upriver, mixed with more of the old kind.",
        _MODEL + "base_model: tiny/harbor-1\nbase_model_relation: finetune\n",
    ),
    "lantern-1": _card(
        "lantern-1",
        "Another family: a GPT-NeoX with its own tokenizer, width, depth and number of heads, that has\n"
        "read about a mountain town and nothing else.",
        _MODEL,
    ),
    "harbor-sql-lora": _card(
        "harbor-sql-lora",
        "A LoRA (rank 8, all seven linear modules) on tiny/harbor-1. It turns a question about\n"
        "the harbour's register into a prepared SQL statement; the base has never seen one.",
        "library_name: peft\nbase_model: tiny/harbor-1\nbase_model_relation: adapter\ntags: [lora]\n",
    ),
}


def anchor_card(repo: str, base: str, task: str) -> str:
    """The card of one anchor of the bundled pool."""
    text = (
        f"A LoRA (rank 4, all seven linear modules) on tiny/{base}, one of a pool of tasks that have\n"
        "an adapter on both harbor models. It answers a question about the harbour's register in the\n"
        f"notation {task}."
    )
    extra = f"library_name: peft\nbase_model: tiny/{base}\nbase_model_relation: adapter\ntags: [lora]\n"
    card = _card(repo.removeprefix("tiny/"), text, extra)
    return card.replace("examples/build.py", "examples/pool.py")
