"""The bundled tiny bases and their adapter as running models, and how well one knows the adapter's task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from examples.evaluate import answer_loss
from examples.text.queries import Example, read_task
from rebase.hub.local import LocalHub
from rebase.lora.config import AdapterConfig
from rebase.lora.low_rank import LowRank, Site
from rebase.lora.reader import read_adapter
from rebase.models.adapter_reader import open_adapter
from rebase.models.causal_lm import CausalLM, load_base_model
from rebase.models.model_reader import open_model
from rebase.models.weights import ModelWeights
from rebase.schemas.repos import RepoRef

_EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Bundled:
    """A base, and what its repo says of it."""

    weights: ModelWeights
    text: CausalLM


@cache
def bundled(name: str) -> Bundled:
    """One of the bundled bases."""
    hub = LocalHub(_EXAMPLES / "hub")
    config, reader, tokenizer = open_model(hub, hub.resolve(RepoRef(repo_id=f"tiny/{name}")))
    assert tokenizer is not None
    weights = ModelWeights(config, reader)
    return Bundled(weights, load_base_model(weights, reader, tokenizer, torch.device("cpu")))


def sql_adapter() -> dict[Site, LowRank]:
    """The updates of the bundled adapter of harbor-1."""
    hub = LocalHub(_EXAMPLES / "hub")
    config, reader = open_adapter(hub, hub.resolve(RepoRef(repo_id="tiny/harbor-sql-lora")))
    adapter = read_adapter(AdapterConfig.parse(config), reader, bundled("harbor-1").weights)
    return {site: adapter.delta(site) for site in adapter.sites}


def task_loss(base: CausalLM, count: int = 64) -> float:
    """Mean nats per answer token over held-out questions of the bundled adapter's task."""
    return loss_on(base, read_task(_EXAMPLES / "tasks" / "harbor-sql.jsonl")[:count])


@torch.no_grad()
def loss_on(base: CausalLM, items: Sequence[Example]) -> float:
    """Mean nats per answer token."""
    ids, labels = [], []
    for item in items:
        prompt, answer = ([*base.encode(text).ids] for text in (item.prompt, item.answer))
        ids.append([base.eos_ids[0], *prompt, *answer, base.eos_ids[0]])
        labels.append([-100] * (1 + len(prompt)) + [*answer, base.eos_ids[0]])
    longest = max(map(len, ids))
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    wanted = torch.tensor([row + [-100] * (longest - len(row)) for row in labels])
    total, tokens = answer_loss(base.model, padded, wanted)
    return float(total) / tokens
