"""What adapters have besides LoRA on their layers is transferred exactly, or counts in the verdict.

PEFT is the witness: the old base with the original adapter and the new one with the converted adapter give
the same output where both bases compute the same function.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from rebase.report.schema import Report
from support.conversions import (
    NEW,
    OLD,
    SKILL,
    AdapterWorld,
    compute_logits,
    read_config,
    scale_module,
)
from support.tiny_models import with_adapter
from support.tiny_repos import edit_json

# PEFT warns about adapters on one of two tied tables, and that it saves copies of token tables.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]


def assert_equal_effect(world: AdapterWorld, original: Any, out: Path) -> None:
    expected = compute_logits(original)
    torch.testing.assert_close(compute_logits(world.load_result(out)), expected, atol=2e-4, rtol=2e-4)
    assert not torch.allclose(expected, compute_logits(world.load(OLD)), atol=1e-2)


def find_reason(report: Report, code: str) -> str | None:
    return next((row.message for row in report.precheck.reasons if row.code == code), None)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("module", ["lm_head", "embed_tokens"])
def test_lora_on_token_tables_moves_with_the_rows(tmp_path: Path, module: str, tied: bool) -> None:
    world = AdapterWorld.create(tmp_path, tie_word_embeddings=tied)
    wrapped = with_adapter(world.load(OLD), r=6, target_modules=["q_proj", module])
    world.save(wrapped)
    report, out = world.convert()
    assert_equal_effect(world, wrapped, out)
    assert (report.precheck.verdict, report.not_carried) == ("compatible", [])
    assert any("vLLM" in warning for warning in report.warnings)


def test_lora_on_a_table_of_higher_rank_than_the_layers_keeps_one_rank(tmp_path: Path) -> None:
    world = AdapterWorld.create(tmp_path)
    wrapped = world.train(target_modules=["q_proj", "lm_head"], rank_pattern={"lm_head": 9})
    _, out = world.convert()
    assert_equal_effect(world, wrapped, out)
    assert read_config(out)["r"] == 9
    assert read_config(out)["rank_pattern"] == {}


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_trained_norms_move_as_a_change_of_the_targets_own(tmp_path: Path, family: str) -> None:
    world = AdapterWorld.create(tmp_path, family)
    modules = {"gpt_neox": ["query_key_value"]}.get(family, ["q_proj"])
    wrapped = world.train(
        scale_module("layernorm", 0.4), target_modules=modules, modules_to_save=["input_layernorm"]
    )
    report, out = world.convert()
    assert_equal_effect(world, wrapped, out)
    assert report.precheck.verdict == "compatible"
    assert report.summary["parameters.carried"] >= 2


def test_trained_biases_move(tmp_path: Path) -> None:
    world = AdapterWorld.create(tmp_path, "qwen2")

    def shift(wrapped: PeftModel) -> None:
        for name, parameter in wrapped.named_parameters():
            if name.endswith("q_proj.base_layer.bias"):
                parameter.add_(0.5)

    wrapped = world.train(shift, bias="lora_only")
    report, out = world.convert()
    assert_equal_effect(world, wrapped, out)
    assert read_config(out)["bias"] == "lora_only"
    assert report.precheck.verdict == "compatible"


def test_a_change_of_a_norm_is_added_to_a_target_whose_norm_differs(tmp_path: Path) -> None:
    world = AdapterWorld.create(tmp_path, distance=0.05)
    world.train(scale_module("model.norm", 0.4), modules_to_save=["model.norm"])
    _, out = world.convert()
    name = "model.norm.weight"
    old, new = (load_file(world.hub / repo / "model.safetensors")[name] for repo in (OLD, NEW))
    trained = load_file(world.hub / SKILL / "adapter_model.safetensors")[f"base_model.model.{name}"]
    moved = load_file(out / "adapter_model.safetensors")[f"base_model.model.{name}"]
    torch.testing.assert_close(moved, new + trained - old)


def test_a_classifier_keeps_its_task_and_its_head(tmp_path: Path) -> None:
    world = AdapterWorld.create(tmp_path)
    load = {"auto_class": AutoModelForSequenceClassification, "num_labels": 3, "pad_token_id": 0}
    torch.manual_seed(4)
    original = with_adapter(world.load(OLD, **load), task_type="SEQ_CLS", r=4, target_modules=["q_proj"])
    world.save(original)
    report, out = world.convert()
    expected = compute_logits(original)
    assert expected.shape == (4, 3)
    torch.testing.assert_close(compute_logits(world.load_result(out, **load)), expected, atol=1e-4, rtol=1e-4)
    assert read_config(out)["task_type"] == "SEQ_CLS"
    assert report.precheck.verdict == "compatible"


def test_a_classifier_is_refused_by_the_name_of_its_head_where_coordinates_change(tmp_path: Path) -> None:
    world = AdapterWorld.create(tmp_path)
    original = with_adapter(
        world.load(OLD, AutoModelForSequenceClassification, num_labels=2),
        task_type="SEQ_CLS",
        r=4,
        target_modules=["q_proj"],
    )
    world.save(original)
    report, _ = world.convert("precheck", method="cross_lora")
    assert report.precheck.verdict == "incompatible"
    assert "trained head score.weight" in str(find_reason(report, "task_head_lost"))


def test_an_adapter_of_the_model_without_a_head_keeps_names_and_task(tmp_path: Path) -> None:
    world = AdapterWorld.create(tmp_path)
    original = with_adapter(
        world.load(OLD, AutoModel), task_type="FEATURE_EXTRACTION", r=4, target_modules=["q_proj"]
    )
    world.save(original)
    _, out = world.convert()
    expected = compute_logits(original)
    result = compute_logits(world.load_result(out, AutoModel))
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, compute_logits(world.load(OLD, AutoModel)), atol=1e-3)
    assert read_config(out)["task_type"] == "FEATURE_EXTRACTION"


def test_dora_is_expanded_until_the_logits_agree_and_its_loss_is_reported(tmp_path: Path) -> None:
    world = AdapterWorld.create(tmp_path)
    wrapped = world.train(use_dora=True, r=2)
    report, out = world.convert()
    expected, result = compute_logits(wrapped), compute_logits(world.load_result(out))
    base = compute_logits(world.load(OLD))
    effect, moved = (expected - base).flatten(), (result - base).flatten()
    assert float(torch.cosine_similarity(effect, moved, dim=0)) > 0.999
    assert 0 <= report.summary["dora_lost_energy.mean"] <= 0.001
    assert report.precheck.measurements["lost_share_logits"] < 0.05
    assert report.precheck.verdict == "compatible"


def test_dora_that_a_low_rank_cuts_is_not_called_compatible(tmp_path: Path) -> None:
    world = AdapterWorld.create(tmp_path)
    world.train(use_dora=True, r=2)
    report, _ = world.convert(output={"dtype": "float32", "max_rank": 4})
    assert report.precheck.verdict != "compatible"
    assert report.precheck.measurements["lost_share_logits"] > 0.05
    assert "DoRA" in str(find_reason(report, "left_behind"))


def test_norms_that_cannot_move_lower_the_verdict_by_their_measured_effect(tmp_path: Path) -> None:
    world = AdapterWorld.create(tmp_path)
    wrapped = world.train(scale_module("layernorm", 0.5), modules_to_save=["input_layernorm"])
    report, out = world.convert(output={"dtype": "float32", "token_rows": False})
    base, whole = compute_logits(world.load(OLD)), compute_logits(wrapped)
    moved = compute_logits(world.load_result(out))
    share = float((whole - moved).norm() / (whole - base).norm())
    measured = report.precheck.measurements["lost_share_logits"]
    assert share > 0.3
    assert measured == pytest.approx(share, abs=0.25)  # other probe tokens
    assert report.precheck.verdict != "compatible"
    assert set(report.not_carried) == {f"model.layers.{n}.input_layernorm.weight" for n in (0, 1)}
    assert "trained norm" in str(find_reason(report, "left_behind"))


def test_the_share_by_norm_decides_where_the_source_is_too_large_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = AdapterWorld.create(tmp_path)
    world.train(scale_module("layernorm", 0.5), modules_to_save=["input_layernorm"])
    monkeypatch.setattr("rebase.conversion.lost_logits.can_run_whole", lambda reader: False)
    report, _ = world.convert("precheck", method="cross_lora")
    assert "lost_share_logits" not in report.precheck.measurements
    assert report.precheck.measurements["lost_share_norm"] > 0.05
    assert report.precheck.verdict != "compatible"


@pytest.mark.parametrize(
    "wrap",
    ["_orig_mod.{}", "module.{}", "base_model.model.{}", "_fsdp_wrapped_module.{}"],
)
def test_names_that_training_wrappers_changed_mean_the_same_modules(tmp_path: Path, wrap: str) -> None:
    world = AdapterWorld.create(tmp_path)
    wrapped = world.train()
    rename_tensors(world, wrap.format)
    _, out = world.convert()
    assert_equal_effect(world, wrapped, out)


def test_wrappers_inside_names_and_dotted_adapter_names_are_ignored(tmp_path: Path) -> None:
    world = AdapterWorld.create(tmp_path)
    wrapped = world.train()
    rename_tensors(
        world,
        lambda name: name.replace(".self_attn.", "._checkpoint_wrapped_module.self_attn.").replace(
            ".weight", ".my.v1.2.weight"
        ),
    )
    _, out = world.convert()
    assert_equal_effect(world, wrapped, out)


def test_buffers_that_were_saved_too_are_ignored(tmp_path: Path) -> None:
    world = AdapterWorld.create(tmp_path)
    wrapped = world.train()
    add_tensors(world, {"base_model.model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    report, out = world.convert()
    assert_equal_effect(world, wrapped, out)
    assert report.not_carried == []


def test_a_value_head_is_named_and_left_behind(tmp_path: Path) -> None:
    world = AdapterWorld.create(tmp_path)
    wrapped = world.train()
    add_tensors(world, {"v_head.summary.weight": torch.ones(1, 32)})
    report, out = world.convert()
    assert_equal_effect(world, wrapped, out)
    assert report.not_carried == ["v_head.summary.weight"]
    assert report.precheck.verdict == "compatible"  # it does not take part in the model's output


def test_an_option_that_peft_does_not_know_lowers_the_verdict_by_name(tmp_path: Path) -> None:
    world = AdapterWorld.create(tmp_path)
    world.train()
    edit_json(world.hub / SKILL / "adapter_config.json", use_newlora=True, old_flag=False)
    report, _ = world.convert()
    assert report.precheck.verdict == "uncertain"
    assert "use_newlora" in str(find_reason(report, "unknown_options"))
    assert "old_flag" not in str(find_reason(report, "unknown_options"))


def test_a_target_that_holds_an_adapter_too_is_said(tmp_path: Path) -> None:
    world = AdapterWorld.create(tmp_path)
    world.train()
    shutil.copy(world.hub / SKILL / "adapter_config.json", world.hub / NEW)
    shutil.copy(world.hub / SKILL / "adapter_model.safetensors", world.hub / NEW)
    report, _ = world.convert()
    assert "adapter_config.json" in str(find_reason(report, "target_holds_adapter"))


def set_template(world: AdapterWorld, repo: str, template: str) -> None:
    (world.hub / repo / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))


def test_the_adapters_own_chat_template_goes_beside_the_result(tmp_path: Path) -> None:
    world = AdapterWorld.create(tmp_path)
    world.train()
    set_template(world, SKILL, "A{{ messages }}")
    set_template(world, NEW, "B{{ messages }}")
    report, out = world.convert()
    assert (out / "chat_template.jinja").read_text() == "A{{ messages }}"
    assert "differs from the target's" in str(find_reason(report, "chat_templates_differ"))


def test_equal_chat_templates_are_not_mentioned(tmp_path: Path) -> None:
    world = AdapterWorld.create(tmp_path)
    world.train()
    for repo in (OLD, NEW):
        set_template(world, repo, "A{{ messages }}")
    report, out = world.convert()
    assert find_reason(report, "chat_templates_differ") is None
    assert not (out / "chat_template.jinja").exists()


def test_the_templates_of_two_bases_that_differ_are_said(tmp_path: Path) -> None:
    world = AdapterWorld.create(tmp_path)
    world.train()
    set_template(world, OLD, "A{{ messages }}")
    set_template(world, NEW, "B{{ messages }}")
    report, _ = world.convert("precheck")
    assert "source base's chat template differs" in str(find_reason(report, "chat_templates_differ"))


def rename_tensors(world: AdapterWorld, rename: Any) -> None:
    path = world.hub / SKILL / "adapter_model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(path).items()}, path)


def add_tensors(world: AdapterWorld, tensors: dict[str, torch.Tensor]) -> None:
    path = world.hub / SKILL / "adapter_model.safetensors"
    save_file({**load_file(path), **tensors}, path)
