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
from examples.text.corpus import corpus
from examples.text.queries import examples
from examples.train import (
    Schedule,
    relative_distance,
    text_loss,
    token_stream,
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
_FEW: Final = Schedule(steps=3, rate=1e-3, batch=2)
SMOKE: Final = Plan(
    documents=200, harbor=_FEW, release=_FEW, lantern=_FEW, skill=_FEW, questions=20, held_out=8
)


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where a build puts things while it works: one plain folder per repo."""

    root: Path
    plan: Plan
    say: Say

    def folder(self, name: str) -> Path:
        """The plain folder of a repo, made when missing."""
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def save(self, name: str, model: Any, tokenizer: Any) -> None:
        """Weights in bfloat16, which halves the download and costs no measurable loss."""
        model.to(torch.bfloat16).save_pretrained(self.folder(name))
        tokenizer.save_pretrained(self.folder(name))


def train_harbor(shop: Workshop) -> dict[str, float]:
    """Train `harbor-1` from scratch and `harbor-2` from it, both on 128-token windows."""
    from transformers import LlamaConfig, LlamaForCausalLM

    plan, coast = shop.plan, corpus("harbor", 1, shop.plan.documents)
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
    inland, fresh = corpus("upriver", 2, plan.documents // 2), corpus("harbor", 3, plan.documents // 2)
    known = set(coast.held_out)
    both = inland.train + [text for text in fresh.train if text not in known]
    Random(4).shuffle(both)
    held_out = {
        "old text": token_stream(coast.held_out, tokenizer),
        "new text": token_stream(inland.held_out, tokenizer),
    }

    shop.say("harbor-1: training from scratch")
    train_language(model, token_stream(coast.train, tokenizer), plan.harbor, 5, shop.say)
    shop.save("harbor-1", model, tokenizer)
    model, _ = load(shop.folder("harbor-1"))
    losses = {f"harbor-1, {which}": text_loss(model, stream) for which, stream in held_out.items()}
    shop.say("harbor-2: further training on new text")
    train_language(model, token_stream(both, tokenizer), plan.release, 6, shop.say)
    losses |= {f"harbor-2, {which}": text_loss(model, stream) for which, stream in held_out.items()}
    first, _ = load(shop.folder("harbor-1"))
    losses["relative weight distance"] = relative_distance(model, first)
    shop.save("harbor-2", model, tokenizer)
    return losses


def train_lantern(shop: Workshop) -> dict[str, float]:
    """Train `lantern-1`: another architecture, width, depth, head count and tokenizer."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    text = corpus("mountain", 7, shop.plan.documents // 2)
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
    shop.say("lantern-1: training from scratch")
    train_language(model, token_stream(text.train, tokenizer), shop.plan.lantern, 8, shop.say)
    shop.save("lantern-1", model, tokenizer)
    return {"lantern-1, its own text": text_loss(model.float(), token_stream(text.held_out, tokenizer))}


def train_skill(shop: Workshop, base: str, name: str) -> None:
    """Train the SQL adapter on `base` and save it in `name`, in float32."""
    shop.say(f"{name}: training an adapter on {base}")
    model, tokenizer = load(shop.folder(base))
    model.config.name_or_path = model.name_or_path = f"tiny/{base}"
    adapted = train_adapter(
        model, tokenizer, examples("train", shop.plan.questions, 9), shop.plan.skill, 10, shop.say
    )
    adapted.peft_config["default"].base_model_name_or_path = f"tiny/{base}"
    adapted.save_pretrained(shop.folder(name), save_embedding_layers=False)
    path = shop.folder(name) / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"] = sorted(
        config["target_modules"]
    )  # a set in PEFT: its order changes from run to run
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
