"""`auto`'s rules through the pipeline: what it looks at, what it hands on, and what it says of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rebase.cache.factor_cache import FactorCache
from rebase.conversion.pipeline import ConversionResult, run_conversion
from rebase.conversion.plan import Kind, plan_conversion
from rebase.hub.local import LocalHub
from rebase.report.progress import NullReporter
from rebase.runtime import Runtime
from rebase.schemas.conversions import ConversionRequest
from support.tiny_models import save_adapter, tiny_model

EXAMPLES = Path(__file__).parents[2] / "examples" / "hub"
HARBOR = {
    "adapter": {"repo_id": "tiny/harbor-sql-lora"},
    "source": {"repo_id": "tiny/harbor-1"},
    "target": {"repo_id": "tiny/lantern-1"},
}


def ran(hub: Path, out: Path, kind: Kind, **body: Any) -> ConversionResult:
    request = ConversionRequest.model_validate({"precheck": {"on_incompatible": "warn"}, **body})
    tools = Runtime(LocalHub(hub), FactorCache(out / "cache", 2**28), torch.device("cpu"), scratch_dir=out)
    found = run_conversion(
        plan_conversion(request, kind), tools, NullReporter(), out / "adapter", marker=None
    )
    assert isinstance(found, ConversionResult)
    return found


def codes(found: ConversionResult) -> dict[str, str]:
    return {reason.code: reason.weight for reason in found.report.precheck.reasons}


def test_between_families_auto_says_that_training_would_carry_the_skill(tmp_path: Path) -> None:
    found = ran(EXAMPLES, tmp_path, "precheck", **HARBOR)
    assert found.report.method_used["name"] == "cross_lora"
    assert codes(found)["auto_would_train"] == "doubt"
    assert found.report.layer_map is None  # no base was run for the choice


def test_where_training_is_allowed_auto_trains(tmp_path: Path) -> None:
    found = ran(EXAMPLES, tmp_path, "precheck", **HARBOR, method={"name": "auto", "train": True})
    assert found.report.method_used["name"] == "distill"
    assert "auto_distill" in codes(found)
    assert "auto_would_train" not in codes(found)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of four layers and one of other width with the first two of them; one tokenizer."""
    root = tmp_path_factory.mktemp("hub")
    (tokens,) = (EXAMPLES / "tiny" / "harbor-1" / "revisions").glob("*/tokenizer.json")
    size = len(json.loads(tokens.read_text())["model"]["vocab"])
    for name, changes in (
        ("old", {"num_hidden_layers": 4}),
        ("new", {"num_hidden_layers": 2, "hidden_size": 48}),
    ):
        model = tiny_model("llama", vocab_size=size, **changes)
        model.save_pretrained(root / "acme" / name)
        (root / "acme" / name / "tokenizer.json").write_text(tokens.read_text())
        if name == "old":
            save_adapter(root / "acme" / "skill", model, r=4, target_modules=["q_proj", "down_proj"])
    config = root / "acme" / "skill" / "adapter_config.json"
    document = json.loads(config.read_text())
    config.write_text(json.dumps(document | {"base_model_name_or_path": "acme/old", "revision": None}))
    return root


def test_a_method_that_auto_chooses_carries_what_it_carries_when_it_is_named(
    deep: Path, tmp_path: Path
) -> None:
    """`activation` folds the layers of a deeper source, which `auto` itself does not ask for."""
    body = {
        "adapter": {"repo_id": "acme/skill"},
        "target": {"repo_id": "acme/new"},
        "precheck": {
            "on_incompatible": "warn",
            "activations": True,
            "thresholds": {"coverage_uncertain": 0.0, "r2_uncertain": -1.0},
        },
    }
    auto = ran(deep, tmp_path / "auto", "convert", **body)
    named = ran(deep, tmp_path / "named", "convert", **body, method="activation")
    assert auto.report.method_used == named.report.method_used
    assert auto.report.method_used["name"] == "activation"
    assert {"auto_activation", "auto_would_train"} <= set(codes(auto))
    assert auto.report.sites == named.report.sites
    assert any("+" in row.source for row in auto.report.sites)
    assert auto.report.dropped_sites == named.report.dropped_sites == []
    measured = [found.report.precheck.measurements for found in (auto, named)]
    assert measured[0]["sites_covered"] == measured[1]["sites_covered"] == 1.0
    assert auto.folder is not None
    assert named.folder is not None
    name = "adapter_model.safetensors"
    assert (auto.folder / name).read_bytes() == (named.folder / name).read_bytes()
