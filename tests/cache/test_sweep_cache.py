"""A rank sweep through the pipeline: the same bytes whatever the cache holds, every rank in the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rebase.cache.factor_cache import FactorCache
from rebase.conversion.pipeline import ConversionResult, run_conversion
from rebase.conversion.plan import plan_conversion
from rebase.hub.local import LocalHub
from rebase.report.progress import NullReporter
from rebase.runtime import Runtime
from rebase.schemas.conversions import ConversionRequest
from support.tiny_repos import ADAPTER, NEW, make_hub

SWEEP = {"name": "cross_lora", "rank": 8, "sweep": [4, 16, 480]}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hub(tmp_path_factory.mktemp("hub"))


def moved(hub: Path, method: dict[str, Any], cache: Path, out: Path) -> Path:
    request = ConversionRequest.model_validate(
        {"adapter": {"repo_id": ADAPTER}, "target": {"repo_id": NEW}, "method": method}
        | {"precheck": {"on_incompatible": "warn"}}
    )
    tools = Runtime(LocalHub(hub), FactorCache(cache, 2**30), torch.device("cpu"))
    assert isinstance(
        run_conversion(plan_conversion(request, "convert"), tools, NullReporter(), out, marker=None),
        ConversionResult,
    )
    return out


@pytest.mark.parametrize(
    "earlier",
    [SWEEP, SWEEP | {"rank": 480, "sweep": []}, SWEEP | {"sweep": []}, SWEEP | {"rank": 16}],
    ids=["itself", "largest", "rank alone", "another rank"],
)
def test_a_sweep_gives_the_same_bytes_whatever_ran_before(
    earlier: dict[str, Any], hub: Path, tmp_path: Path
) -> None:
    cold = moved(hub, SWEEP, tmp_path / "cold", tmp_path / "one")
    moved(hub, earlier, tmp_path / "warm", tmp_path / "before")
    warm = moved(hub, SWEEP, tmp_path / "warm", tmp_path / "two")
    for name in ("adapter_model.safetensors", "rebase_report.json"):
        assert (cold / name).read_bytes() == (warm / name).read_bytes()


def test_every_site_and_the_summary_report_every_rank(hub: Path, tmp_path: Path) -> None:
    folder = moved(hub, SWEEP, tmp_path / "cache", tmp_path / "out")
    report = json.loads((folder / "rebase_report.json").read_text())
    assert report["method_used"]["sweep"] == SWEEP["sweep"]
    for site in report["sites"]:
        kept = [site["measurements"][f"energy_kept_at_{k}"] for k in (4, 16, 480)]
        assert kept == sorted(kept)
        assert kept[0] <= site["measurements"]["energy_kept"] <= kept[1]
