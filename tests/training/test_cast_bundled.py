"""CAST between the bundled trained bases: what training adds, and what one adapter's heads do for another."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from examples.text.formats import TASKS, generate_task_examples
from examples.text.queries import Example, read_task
from rebase.cache.factor_cache import FactorCache
from rebase.conversion.pipeline import ConversionResult, run_conversion
from rebase.conversion.plan import plan_conversion
from rebase.hub.local import LocalHub
from rebase.lora.low_rank import LowRank, Role
from rebase.models.causal_lm import with_deltas
from rebase.report.progress import NullReporter
from rebase.runtime import Runtime
from rebase.schemas.conversions import ConversionRequest
from support.bundled import bundled, loss_on

EXAMPLES = Path(__file__).parents[2] / "examples"
CAST: dict[str, Any] = {
    "name": "cast",
    "positions": 4096,
    "tokens": 128,
    "steps": 30,
    "evaluate_every": 15,
    "learning_rate": 3e-3,
    "warmup": 4,
}


def move(home: Path, adapter: str, out: str, method: dict[str, Any]) -> ConversionResult:
    """An adapter of harbor-1 on harbor-2."""
    body = {
        "adapter": {"repo_id": f"tiny/{adapter}"},
        "source": {"repo_id": "tiny/harbor-1"},
        "target": {"repo_id": "tiny/harbor-2"},
        "method": method,
        "output": {"dtype": "float32"},
        "precheck": {"on_incompatible": "warn"},
    }
    tools = Runtime(
        LocalHub(EXAMPLES / "hub"),
        FactorCache(home / "cache", 2**28),
        torch.device("cpu"),
        scratch_dir=home / "scratch",
    )
    found = run_conversion(
        plan_conversion(ConversionRequest.model_validate(body), "convert"),
        tools,
        NullReporter(),
        home / out,
        marker=None,
    )
    assert isinstance(found, ConversionResult)
    return found


@cache
def items_of(name: str) -> list[Example]:
    """Held-out questions of a task."""
    if name == "sql":
        return read_task(EXAMPLES / "tasks" / "harbor-sql.jsonl")[:64]
    task = next(task for task in TASKS if task.name.lower() == name)
    return generate_task_examples(task, "held-out", 48, 7)


def loss(folder: Path | None, name: str) -> float:
    """Nats per answer token of harbor-2, with the adapter in `folder` or alone."""
    base, deltas = bundled("harbor-2"), {}
    tensors = load_file(folder / "adapter_model.safetensors") if folder else {}
    for site in base.weights.sites:
        block = "self_attn" if site.role in {Role.Q, Role.K, Role.V, Role.O} else "mlp"
        stem = f"base_model.model.model.layers.{site.layer}.{block}.{site.role.value}.lora_"
        if f"{stem}A.weight" in tensors:
            deltas[site] = LowRank(tensors[f"{stem}B.weight"], tensors[f"{stem}A.weight"])
    with with_deltas(base.text, deltas):
        return loss_on(base.text, items_of(name))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where heads were trained with the SQL adapter."""
    folder = tmp_path_factory.mktemp("home")
    move(folder, "harbor-sql-lora", "sql", CAST)
    return folder


def test_training_on_general_text_brings_more_of_the_task_than_the_closed_form(
    home: Path, tmp_path: Path
) -> None:
    """6.1 nats alone; no text of the task was seen."""
    closed = move(home, "harbor-sql-lora", "closed", {"name": "activation", "positions": 4096})
    assert closed.folder is not None
    assert loss(home / "sql", "sql") < loss(closed.folder, "sql") < 0.3 * loss(None, "sql")


@pytest.mark.parametrize("objective", ["shift", "distribution"])
def test_either_objective_lowers_its_own_divergence(objective: str, home: Path, tmp_path: Path) -> None:
    found = move(tmp_path, "harbor-sql-lora", "out", {**CAST, "steps": 15, "objective": objective})
    told = found.report.summary
    assert told["cast_nats_carried"] < told["cast_nats_begun"] < told["cast_nats_alone"]
    assert told["cast_coverage"] == pytest.approx(1.0, abs=1e-4)  # one tokenizer


def test_heads_of_one_adapter_carry_another(home: Path, tmp_path: Path) -> None:
    """10.2 nats alone. What they know beyond the closed form lies in the few directions that both adapters
    use."""
    closed = move(home, "harbor-json-lora-1", "closed json", {"name": "activation", "positions": 4096})
    found = move(home, "harbor-json-lora-1", "json", {**CAST, "reuse": True})
    assert found.folder is not None
    assert found.report.cast_heads_trained_on is not None
    assert found.report.cast_heads_trained_on.repo_id == "tiny/harbor-sql-lora"
    assert 0.0 < found.report.summary["reads_trained.mean"] < 1.0
    assert closed.folder is not None
    assert loss(found.folder, "json") < loss(closed.folder, "json") < 0.4 * loss(None, "json")
