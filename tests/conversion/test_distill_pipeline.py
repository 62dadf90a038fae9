"""`distill` and `refine` as a job runs them, on the bundled bases."""

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
from rebase.errors import Cancelled, TrainingFailed
from rebase.hub.local import LocalHub
from rebase.lora.low_rank import LowRank, Role, Site
from rebase.models.causal_lm import with_deltas
from rebase.report.progress import NullReporter
from rebase.runtime import Runtime
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.states import Phase
from support.bundled import bundled, task_loss

HUB = Path(__file__).parents[2] / "examples" / "hub"
PROMPTS = [item.prompt for item in generate_examples("train", 64, 5)]
SETTINGS = {"prompts": PROMPTS, "tokens": 800, "length": 48, "steps": 16, "learning_rate": 2e-3}
QUICK = {"name": "distill", **SETTINGS}


class StopsAt(NullReporter):
    """A worker that is told to stop after some steps of training."""

    def __init__(self, step: int) -> None:
        self.last = step

    def update(self, phase: Phase, done: int = 0, total: int | None = None, unit: str | None = None) -> None:
        if phase is Phase.TRAINING and done >= self.last:
            raise Cancelled("Stopped.")


def _run(
    tmp_path: Path, out: str, method: dict[str, Any], watch: NullReporter | None = None
) -> ConversionResult:
    request = ConversionRequest.model_validate(
        {
            "adapter": {"repo_id": "tiny/harbor-sql-lora"},
            "source": {"repo_id": "tiny/harbor-1"},
            "target": {"repo_id": "tiny/harbor-2"},
            "method": method,
            "output": {"dtype": "float32"},
        }
    )
    tools = Runtime(
        LocalHub(HUB),
        FactorCache(tmp_path / "cache", 2**28),
        torch.device("cpu"),
        scratch_dir=tmp_path / "scratch",
    )
    found = run_conversion(
        plan_conversion(request, "convert"), tools, watch or NullReporter(), tmp_path / out, marker=None
    )
    assert isinstance(found, ConversionResult)
    return found


def _loss(folder: Path) -> float:
    """Of the written adapter, on held-out questions."""
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


def test_a_trained_adapter_knows_the_task_and_the_report_tells_how_it_came(tmp_path: Path) -> None:
    found = _run(tmp_path, "out", QUICK)
    assert found.folder is not None
    assert _loss(found.folder) < 0.6 * task_loss(bundled("harbor-2").text)
    summary = found.report.summary
    assert summary["distill_best_step"] > 0
    assert summary["distill_nats_carried"] < summary["distill_nats_alone"]
    curve = found.report.training_curve
    assert [point["steps"] for point in curve] == [0.0, 16.0]
    assert curve[-1]["held_out"] < curve[0]["held_out"]
    assert any("more steps (steps)" in line for line in found.report.caveats)
    card = (found.folder / "README.md").read_text()
    assert f'"{len(PROMPTS)} entries"' in card
    assert PROMPTS[0] not in card
    assert "trains" in {reason.code for reason in found.report.precheck.reasons}
    assert not any((tmp_path / "scratch" / "training").iterdir())


def test_a_worker_that_takes_over_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole = _run(tmp_path / "a", "out", QUICK)
    with pytest.raises(Cancelled):
        _run(tmp_path / "b", "first", QUICK, StopsAt(9))
    assert any((tmp_path / "b" / "scratch" / "training").iterdir())
    resumed = _run(tmp_path / "b", "out", QUICK)
    assert resumed.report.to_json() == whole.report.to_json()
    name = "adapter_model.safetensors"
    assert whole.folder is not None
    assert resumed.folder is not None
    assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_training_that_brings_nothing_publishes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="never predicted") as caught:
        _run(tmp_path, "out", {**QUICK, "learning_rate": 1e-12, "steps": 2})
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_training_may_begin_with_closed_form_maps(tmp_path: Path) -> None:
    found = _run(tmp_path, "out", {**QUICK, "init": "closed_form", "steps": 4, "positions": 4096})
    assert found.report.layer_map is not None
    assert found.report.precheck.measurements["cka_coverage"] == 1.0
    assert min(found.report.precheck.measurements[f"{name}_r2_centred"] for name in ("read", "write")) > 0.8
    assert found.report.summary["distill_nats_carried"] < found.report.summary["distill_nats_alone"]


def test_any_method_can_be_refined(tmp_path: Path) -> None:
    plain = _run(tmp_path, "plain", {"name": "cross_lora"})
    refined = _run(tmp_path, "refined", {"name": "cross_lora", "refine": {**SETTINGS, "steps": 8}})
    assert plain.folder is not None
    assert refined.folder is not None
    assert _loss(refined.folder) < _loss(plain.folder)
    assert refined.report.summary["distill_samples"] > 0
