"""A trained adapter moved by the pipeline itself, without a service; its effect measured on held-out text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from rebase.cache.factor_cache import FactorCache
from rebase.conversion.pipeline import ConversionResult, run_conversion
from rebase.conversion.plan import Kind, plan_conversion
from rebase.hub.local import LocalHub
from rebase.report.progress import NullReporter
from rebase.report.schema import Report
from rebase.runtime import Runtime
from rebase.schemas.conversions import ConversionRequest
from support import committed_adapters, real_adapter
from support.real_models import GEMMA3
from support.real_release import NEXT_RELEASE
from support.real_repos import ADAPTER_REPO, Base, load_model

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


@pytest.fixture
def tools(hub_root: Path, tmp_path: Path) -> Runtime:
    cache = FactorCache(tmp_path / "cache", 2**30, None, 60, 2**20)
    return Runtime(hub=LocalHub(hub_root), cache=cache, device=torch.device("cpu"))


def request(target: str, **more: Any) -> ConversionRequest:
    body = {"adapter": {"repo_id": ADAPTER_REPO}, "target": {"repo_id": target}, **more}
    return ConversionRequest.model_validate(body)


def report_of(wanted: ConversionRequest, kind: Kind, tools: Runtime, folder: Path) -> Report:
    outcome = run_conversion(plan_conversion(wanted, kind), tools, NullReporter(), folder, marker=None)
    assert isinstance(outcome, ConversionResult)
    return outcome.report


def test_training_taught_the_adapter_its_language(adapter_folder: Path) -> None:
    losses = committed_adapters.losses(adapter_folder)
    print(f"\nheld-out loss of the source: {losses['before']} -> {losses['after']} nats per token")
    assert losses["after"] < losses["before"] - 2.0


def test_copy_to_the_next_release_keeps_nearly_all_of_the_effect(
    next_release: Path, adapter_folder: Path, tools: Runtime, smollm2: Base, tmp_path: Path
) -> None:
    report = report_of(request(NEXT_RELEASE, method="copy"), "convert", tools, tmp_path / "moved")
    assert report.precheck.verdict == "compatible"
    model = load_model(next_release)
    alone = real_adapter.held_out_loss(model, smollm2.tokenizer)
    moved = PeftModel.from_pretrained(model, str(tmp_path / "moved"))
    with_adapter = real_adapter.held_out_loss(moved, smollm2.tokenizer)
    losses = committed_adapters.losses(adapter_folder)
    recovered = (alone - with_adapter) / (losses["before"] - losses["after"])
    print(
        f"\nnext release: {alone:.3f} alone, {with_adapter:.3f} with the transferred adapter; {recovered:.0%}"
    )
    assert recovered > 0.9


def test_auto_finds_relatives_compatible_and_chooses_copy(
    next_release: Path, tools: Runtime, tmp_path: Path
) -> None:
    report = report_of(request(NEXT_RELEASE), "precheck", tools, tmp_path / "unused")
    assert report.precheck.verdict == "compatible"
    assert report.method_used["name"] == "copy"


def test_auto_does_not_promise_success_between_families(tools: Runtime, tmp_path: Path) -> None:
    report = report_of(request(GEMMA3.repo_id), "precheck", tools, tmp_path / "unused")
    print("\n" + "\n".join(f"{reason.weight}: {reason.message}" for reason in report.precheck.reasons))
    assert report.precheck.verdict in {"uncertain", "incompatible"}
    assert any(reason.weight != "info" for reason in report.precheck.reasons)
