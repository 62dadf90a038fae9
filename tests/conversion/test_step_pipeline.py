"""`activation` with `solve=step` as a job runs it, on the bundled bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from examples.text.queries import generate_examples
from rebase.cache.factor_cache import FactorCache
from rebase.conversion.pipeline import ConversionResult, run_conversion
from rebase.conversion.plan import plan_conversion
from rebase.errors import TrainingFailed
from rebase.hub.local import LocalHub
from rebase.lora.linalg import frobenius
from rebase.lora.low_rank import LowRank, Role, Site
from rebase.models.causal_lm import with_deltas
from rebase.report.progress import NullReporter
from rebase.runtime import Runtime
from rebase.schemas.conversions import ConversionRequest
from support.bundled import bundled, sql_adapter, task_loss

HUB = Path(__file__).parents[2] / "examples" / "hub"
WRITTEN = {
    "prompts": [item.prompt for item in generate_examples("train", 64, 5)],
    "tokens": 1600,
    "length": 48,
}
STEP = {"name": "activation", "solve": "step", "written": WRITTEN}
# Where it does not matter how much of the task is learnt.
FEW = WRITTEN | {"tokens": 400, "length": 32}
BRIEF_STEP = STEP | {"written": FEW}


def _run(
    tmp_path: Path, method: dict[str, Any], *, target: str = "tiny/harbor-2", **more: int
) -> ConversionResult:
    request = ConversionRequest.model_validate(
        {
            "adapter": {"repo_id": "tiny/harbor-sql-lora"},
            "source": {"repo_id": "tiny/harbor-1"},
            "target": {"repo_id": target},
            "method": method,
            "output": {"dtype": "float32"},
            "precheck": {"on_incompatible": "warn"},
        }
    )
    cache, scratch = FactorCache(tmp_path / "cache", 2**28), tmp_path / "scratch"
    tools = Runtime(LocalHub(HUB), cache, torch.device("cpu"), scratch_dir=scratch, **more)
    found = run_conversion(
        plan_conversion(request, "convert"), tools, NullReporter(), tmp_path / "out", marker=None
    )
    assert isinstance(found, ConversionResult)
    return found


@pytest.fixture(scope="module")
def stepped(tmp_path_factory: pytest.TempPathFactory) -> ConversionResult:
    """One step on the whole of the written text, as most tests here take it."""
    folder = tmp_path_factory.mktemp("stepped")
    found = _run(folder, STEP)
    assert not any((folder / "scratch" / "training").iterdir())
    return found


def _loss(folder: Path | None) -> float:
    """Of the written adapter, on held-out questions."""
    assert folder is not None
    tensors = load_file(folder / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.{}.{}.{}.lora_{}.weight"
    base = bundled("harbor-2")
    deltas = {}
    for site in base.weights.sites:
        block = "self_attn" if site.role in {Role.Q, Role.K, Role.V, Role.O} else "mlp"
        A, B = (tensors[stem.format(site.layer, block, site.role.value, name)] for name in "AB")
        deltas[Site(site.layer, site.role)] = LowRank(B, A)
    with with_deltas(base.text, deltas):
        return task_loss(base.text)


def test_one_step_knows_part_of_the_task_and_the_report_tells_how_it_came(stepped: ConversionResult) -> None:
    found = stepped
    assert _loss(found.folder) < 0.8 * task_loss(bundled("harbor-2").text)
    summary = found.report.summary
    assert summary["step_nats_carried"] < summary["step_nats_alone"]
    assert summary["step_length"] > 0.0
    assert found.report.layer_map is None  # it reads no corpus
    assert "steps" in {reason.code for reason in found.report.precheck.reasons}


def test_sums_gathered_place_by_place_give_the_same_step(tmp_path: Path) -> None:
    """As many passes as a small budget asks for, and the same update."""
    whole = _run(tmp_path / "whole", BRIEF_STEP)
    parted = _run(tmp_path / "parted", BRIEF_STEP, activation_bytes=1)
    assert whole.report.summary == parted.report.summary
    ours, theirs = ((one.folder or tmp_path) / "adapter_model.safetensors" for one in (whole, parted))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_step_from_what_the_maps_carry_knows_more_than_either(
    tmp_path: Path, stepped: ConversionResult
) -> None:
    both, maps = (
        _loss(_run(tmp_path / solve, STEP | {"solve": solve, "positions": 2048}).folder)
        for solve in ("both", "maps")
    )
    assert both < _loss(stepped.folder)
    assert both < maps


def test_folding_does_not_add_the_step_up(tmp_path: Path) -> None:
    """The step is the whole target's; it is not a part of several that belong together."""
    found = _run(tmp_path, BRIEF_STEP | {"fold": True})
    assert "folded.mean" not in found.report.summary


@pytest.mark.parametrize(
    "method",
    [
        {"name": "distill", "prompts": WRITTEN["prompts"], "tokens": 400, "length": 32, "steps": 3},
        BRIEF_STEP,
    ],
)
def test_what_is_found_as_a_whole_is_shared_out_among_no_layers(
    tmp_path: Path, method: dict[str, Any]
) -> None:
    """Six layers for four: most share a source layer, and each has an update of its own."""
    found = _run(tmp_path, method | {"layer_scale": True}, target="tiny/lantern-1")
    own = {str(site): frobenius(delta) for site, delta in sql_adapter().items()}
    assert len({row.source for row in found.report.sites}) < len(found.report.sites)
    for row in found.report.sites:
        assert "layer_scale" not in row.measurements
        ratio = row.measurements["update_norm"] / own[row.source]
        assert row.measurements["norm_ratio"] == pytest.approx(ratio, rel=1e-5)


def test_training_may_begin_with_the_step(tmp_path: Path) -> None:
    training = {"name": "distill", **FEW, "learning_rate": 1e-12, "steps": 1}
    with pytest.raises(TrainingFailed, match="never predicted"):
        _run(tmp_path / "zero", training)  # nothing is learnt at such a rate
    found = _run(tmp_path / "step", training | {"init": "step"})
    assert found.report.summary["distill_nats_carried"] < found.report.summary["distill_nats_alone"]
