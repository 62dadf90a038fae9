"""Every shape in which PEFT trains a LoRA, moved to an unchanged copy of its base: nothing may change.

The witness is the original adapter on its own base, both run by PEFT.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from rebase.cache.factor_cache import FactorCache
from rebase.conversion.pipeline import ConversionResult, run_conversion
from rebase.conversion.plan import plan_conversion
from rebase.errors import UnsupportedModel
from rebase.hub.local import LocalHub
from rebase.report.progress import NullReporter
from rebase.report.schema import Report
from rebase.runtime import Runtime
from rebase.schemas.conversions import ConversionRequest
from support.tiny_models import TINY_CONFIGS, save_base, tiny_model, with_adapter
from support.tiny_repos import edit_json

OLD, NEW, SKILL = "acme/old", "acme/new", "acme/skill"
GPT2 = {"fan_in_fan_out": True}


def convert(hub: Path, **changes: Any) -> tuple[Report, Path]:
    body = {"adapter": {"repo_id": SKILL}, "target": {"repo_id": NEW}, "method": "copy"}
    body |= {"output": {"dtype": "float32"}, "precheck": {"on_incompatible": "warn"}}
    tools = Runtime(LocalHub(hub), FactorCache(hub.parent / "cache", 2**30), torch.device("cpu"))
    out = hub.parent / "out"
    outcome = run_conversion(
        plan_conversion(ConversionRequest.model_validate(body | changes), "convert"),
        tools,
        NullReporter(),
        out,
        marker=None,
    )
    assert isinstance(outcome, ConversionResult)
    return outcome.report, out


def train(hub: Path, family: str, **lora: Any) -> None:
    with_adapter(tiny_model(family), **{"r": 4, "lora_alpha": 6, **lora}).save_pretrained(str(hub / SKILL))
    edit_json(hub / SKILL / "adapter_config.json", base_model_name_or_path=OLD, revision=None)


def logits(base: Path, adapter: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(model.eval(), str(adapter)).eval()
    with torch.no_grad():
        result: Tensor = loaded(torch.arange(96).view(4, 24)).logits
    return result


SHAPES: list[tuple[str, dict[str, Any]]] = [
    *[
        (family, {"target_modules": "all-linear"} | (GPT2 if family == "gpt2" else {}))
        for family in TINY_CONFIGS
    ],
    ("llama", {"target_modules": r".*\.1\..*\.(q_proj|down_proj)"}),
    ("gpt2", {"target_modules": r".*\.(attn\.c_proj|mlp\.c_fc)", **GPT2}),
    ("phi3", {"target_modules": r".*qkv_proj"}),
    ("llama", {"target_modules": "all-linear", "exclude_modules": ["v_proj"]}),
    (
        "llama",
        {"target_modules": ["v_proj", "up_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    ),
    (
        "llama",
        {
            "target_modules": ["q_proj", "o_proj"],
            "rank_pattern": {"o_proj": 9},
            "alpha_pattern": {"q_proj": 3},
        },
    ),
    ("gpt2", {"target_modules": ["c_attn"], "use_rslora": True, "rank_pattern": {r"h\.0\..*": 2}, **GPT2}),
    ("phi3", {"target_modules": ["gate_up_proj"], "use_rslora": True, "alpha_pattern": {"gate_up_proj": 1}}),
    ("llama", {"target_modules": ["q_proj", "down_proj"], "use_dora": True, "r": 32}),
    ("gpt2", {"target_modules": ["c_attn", "c_fc"], "use_dora": True, "r": 32, **GPT2}),
    ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"], "use_dora": True, "r": 32}),
]


@pytest.mark.parametrize(("family", "lora"), SHAPES, ids=json.dumps)
def test_an_adapter_moved_to_an_unchanged_copy_of_its_base_does_the_same(
    tmp_path: Path, family: str, lora: dict[str, Any]
) -> None:
    hub = tmp_path / "hub"
    save_base(hub / OLD, family)
    shutil.copytree(hub / OLD, hub / NEW)
    train(hub, family, **lora)
    report, out = convert(hub)

    expected = logits(hub / OLD, hub / SKILL)
    torch.testing.assert_close(logits(hub / NEW, out), expected, atol=2e-4, rtol=2e-4)
    assert report.not_carried == []


def test_the_string_all_linear_in_a_config_means_every_linear_module(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    save_base(hub / OLD, "phi3")
    shutil.copytree(hub / OLD, hub / NEW)
    train(hub, "phi3", target_modules="all-linear")
    edit_json(hub / SKILL / "adapter_config.json", target_modules="all-linear")
    _, out = convert(hub)

    torch.testing.assert_close(logits(hub / NEW, out), logits(hub / OLD, hub / SKILL), atol=2e-4, rtol=2e-4)


def _unfused(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Phi-3's tensors under Llama's names: [q | k | v] and [gate | up] cut by rows."""
    sizes = {
        "qkv_proj": {"q_proj": 32, "k_proj": 16, "v_proj": 16},
        "gate_up_proj": {"gate_proj": 48, "up_proj": 48},
    }
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        fused = next((part for part in sizes if f".{part}." in name), None)
        if fused is None:
            found[name] = tensor
            continue
        for part, rows in zip(sizes[fused], tensor.split(list(sizes[fused].values())), strict=True):
            found[name.replace(fused, part)] = rows.clone()
    return found


@pytest.mark.parametrize("way", ["fused to split", "split to fused"])
def test_an_adapter_keeps_its_effect_between_fused_and_split_modules(tmp_path: Path, way: str) -> None:
    """Phi-3 and Llama compute the same function here: the same weights, cut differently."""
    hub = tmp_path / "hub"
    fused, split = (OLD, NEW) if way == "fused to split" else (NEW, OLD)
    save_base(hub / fused, "phi3")
    save_base(hub / split, "llama")
    tensors = _unfused(load_file(hub / fused / "model.safetensors"))
    save_file(tensors, hub / split / "model.safetensors", metadata={"format": "pt"})
    modules = (
        ["qkv_proj", "gate_up_proj", "down_proj"]
        if fused == OLD
        else ["q_proj", "v_proj", "up_proj", "o_proj"]
    )
    train(hub, "phi3" if fused == OLD else "llama", target_modules=modules)
    _, out = convert(hub)

    torch.testing.assert_close(logits(hub / NEW, out), logits(hub / OLD, hub / SKILL), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(("repo", "field"), [(OLD, "/source"), (NEW, "/target")])
@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8"])
def test_a_config_that_claims_a_quantization_which_the_weights_lack_is_refused_at_its_field(
    tmp_path: Path, repo: str, field: str, method: str
) -> None:
    hub = tmp_path / "hub"
    save_base(hub / OLD, "llama")
    shutil.copytree(hub / OLD, hub / NEW)
    train(hub, "llama", target_modules=["q_proj"])
    edit_json(hub / repo / "config.json", quantization_config={"quant_method": method})
    with pytest.raises(UnsupportedModel, match="no tensor is stored in that format") as caught:
        convert(hub)
    assert caught.value.pointer == field
    assert "unquantized" in (caught.value.hint or "")
