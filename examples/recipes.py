"""How each bundled model is made: its text, its shape, how long it is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import torch

from examples.evaluate import load
from examples.text.corpus import generate_corpus
from examples.text.queries import generate_examples
from examples.train import (
    Schedule,
    compute_relative_distance,
    encode_stream,
    text_loss,
    train_adapter,
    train_language,
    train_tokenizer,
)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything: documents, training steps, questions."""

    documents: int
    harbor: Schedule
    release: Schedule
    lantern: Schedule
    skill: Schedule
    questions: int
    held_out: int


FULL: Final = Plan(
    documents=8000,
    harbor=Schedule(steps=1200, rate=3e-3, batch=8),
    release=Schedule(steps=400, rate=1.6e-4, batch=8),
    lantern=Schedule(steps=600, rate=3e-3, batch=8),
    skill=Schedule(steps=300, rate=3e-3),
    questions=4000,
    held_out=120,
)
_SMOKE_SCHEDULE: Final = Schedule(steps=3, rate=1e-3, batch=2)
SMOKE: Final = Plan(
    documents=200,
    harbor=_SMOKE_SCHEDULE,
    release=_SMOKE_SCHEDULE,
    lantern=_SMOKE_SCHEDULE,
    skill=_SMOKE_SCHEDULE,
    questions=20,
    held_out=8,
)


@dataclass(frozen=True, slots=True)
class BuildContext:
    """Where a build puts things while it works: one plain folder per repo."""

    root: Path
    plan: Plan
    say: Say

    def make_folder(self, name: str) -> Path:
        """The plain folder of a repo, made when missing."""
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def save(self, name: str, model: Any, tokenizer: Any) -> None:
        """Weights in bfloat16, which halves the download and costs no measurable loss."""
        model.to(torch.bfloat16).save_pretrained(self.make_folder(name))
        tokenizer.save_pretrained(self.make_folder(name))


def train_harbor(context: BuildContext) -> dict[str, float]:
    """Train `harbor-1` from scratch and `harbor-2` from it, both on 128-token windows."""
    from transformers import LlamaConfig, LlamaForCausalLM

    plan, coast = context.plan, generate_corpus("harbor", 1, context.plan.documents)
    tokenizer = train_tokenizer(coast.train, 1024)
    torch.manual_seed(1)
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    inland, fresh = (
        generate_corpus("upriver", 2, plan.documents // 2),
        generate_corpus("harbor", 3, plan.documents // 2),
    )
    held_out_texts = set(coast.held_out)
    mixed_texts = inland.train + [text for text in fresh.train if text not in held_out_texts]
    Random(4).shuffle(mixed_texts)
    held_out = {
        "old text": encode_stream(coast.held_out, tokenizer),
        "new text": encode_stream(inland.held_out, tokenizer),
    }

    context.say("harbor-1: training from scratch")
    train_language(model, encode_stream(coast.train, tokenizer), plan.harbor, 5, context.say)
    context.save("harbor-1", model, tokenizer)
    model, _ = load(context.make_folder("harbor-1"))
    losses = {f"harbor-1, {which}": text_loss(model, stream) for which, stream in held_out.items()}
    context.say("harbor-2: further training on new text")
    train_language(model, encode_stream(mixed_texts, tokenizer), plan.release, 6, context.say)
    losses |= {f"harbor-2, {which}": text_loss(model, stream) for which, stream in held_out.items()}
    first, _ = load(context.make_folder("harbor-1"))
    losses["relative weight distance"] = compute_relative_distance(model, first)
    context.save("harbor-2", model, tokenizer)
    return losses


def train_lantern(context: BuildContext) -> dict[str, float]:
    """Train `lantern-1`: another architecture, width, depth, head count and tokenizer."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    text = generate_corpus("mountain", 7, context.plan.documents // 2)
    tokenizer = train_tokenizer(text.train, 768)
    torch.manual_seed(7)
    model: Any = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=6,
            num_attention_heads=6,
            max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    context.say("lantern-1: training from scratch")
    train_language(model, encode_stream(text.train, tokenizer), context.plan.lantern, 8, context.say)
    context.save("lantern-1", model, tokenizer)
    return {"lantern-1, its own text": text_loss(model.float(), encode_stream(text.held_out, tokenizer))}


def train_skill(context: BuildContext, base: str, name: str) -> None:
    """Train the SQL adapter on `base` and save it in `name`, in float32."""
    context.say(f"{name}: training an adapter on {base}")
    model, tokenizer = load(context.make_folder(base))
    model.config.name_or_path = model.name_or_path = f"tiny/{base}"
    adapted = train_adapter(
        model,
        tokenizer,
        generate_examples("train", context.plan.questions, 9),
        context.plan.skill,
        10,
        context.say,
    )
    adapted.peft_config["default"].base_model_name_or_path = f"tiny/{base}"
    adapted.save_pretrained(context.make_folder(name), save_embedding_layers=False)
    path = context.make_folder(name) / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"] = sorted(
        config["target_modules"]
    )  # a set in PEFT: its order changes from run to run
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
