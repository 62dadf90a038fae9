"""Adapters of every PEFT type that changes weights move exactly; PEFT's own forward pass is the witness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from rebase.errors import MalformedAdapter, UnsupportedAdapter
from rebase.lora.config import EXPANDED_TYPES
from support.conversions import OLD, SKILL, AdapterWorld, compute_logits, read_config
from support.tiny_repos import edit_json

TARGETS: dict[str, Any] = {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
CONFIGS: dict[str, Any] = {
    "ADALORA": lambda **t: peft.AdaLoraConfig(init_r=6, target_r=4, total_step=10, **t),
    "LOHA": lambda **t: peft.LoHaConfig(r=3, alpha=6, rank_pattern={"down_proj": 2}, **t),
    "LOKR": lambda **t: peft.LoKrConfig(r=3, alpha=6, **t),
    "VERA": lambda **t: peft.VeraConfig(r=8, **t),
    "IA3": lambda **t: peft.IA3Config(feedforward_modules=["down_proj"], **t),
    "OFT": lambda **t: peft.OFTConfig(r=0, oft_block_size=8, **t),
    "BOFT": lambda **t: peft.BOFTConfig(boft_block_size=4, **t),
    "HRA": lambda **t: peft.HRAConfig(r=4, **t),
    "FOURIERFT": lambda **t: peft.FourierFTConfig(n_frequency=40, **t),
    "SHIRA": lambda **t: peft.ShiraConfig(r=2, **t),
    "VBLORA": lambda **t: peft.VBLoRAConfig(r=2, num_vectors=40, vector_length=16, **t),
    "ROAD": lambda **t: peft.RoadConfig(group_size=8, **t),
    "MISS": lambda **t: peft.MissConfig(r=4, **t),
    "C3A": lambda **t: peft.C3AConfig(block_size=8, **t),
    "DELORA": lambda **t: peft.DeloraConfig(r=3, **t),
    "WAVEFT": lambda **t: peft.WaveFTConfig(n_frequency=40, **t),
}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's own, about each type


def train(world: AdapterWorld, config: Any) -> Any:
    """An adapter of the old base with random numbers in everything that is trained."""
    wrapped = peft.get_peft_model(world.load(OLD), config)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    world.save(wrapped)
    return wrapped.eval()


def assert_same_effect(world: AdapterWorld, wrapped: Any, out: Path) -> None:
    """The converted adapter changes the logits as the original does, to 0.1 %."""
    base = compute_logits(world.load(OLD))
    expected, result = compute_logits(wrapped) - base, compute_logits(world.load_result(out)) - base
    assert float(expected.norm()) > 0.05
    assert float((result - expected).norm() / expected.norm()) < 1e-3


def test_every_type_that_is_read_is_tried_here() -> None:
    assert CONFIGS.keys() == EXPANDED_TYPES


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_type_that_changes_weights_becomes_a_lora_with_the_same_logits(tmp_path: Path, name: str) -> None:
    world = AdapterWorld.create(tmp_path)
    wrapped = train(world, CONFIGS[name](**TARGETS))
    report, out = world.convert()
    assert_same_effect(world, wrapped, out)
    assert read_config(out)["peft_type"] == "LORA"
    assert report.summary["expansion_lost_energy.max"] == 0.0
    assert report.precheck.measurements["lost_share_logits"] < 1e-3
    assert any(name in warning for warning in report.warnings)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3"])
def test_fused_and_transposed_modules_are_expanded_role_by_role(tmp_path: Path, family: str) -> None:
    world = AdapterWorld.create(tmp_path, family)
    targets = {"gpt2": ["c_attn"], "gpt_neox": ["query_key_value"], "phi3": ["qkv_proj"]}[family]
    wrapped = train(
        world,
        peft.IA3Config(
            target_modules=targets,
            feedforward_modules=[],
            fan_in_fan_out=family == "gpt2",
            task_type="CAUSAL_LM",
        ),
    )
    _, out = world.convert()
    assert_same_effect(world, wrapped, out)


def test_the_biases_that_ia3_rescales_move_too(tmp_path: Path) -> None:
    world = AdapterWorld.create(tmp_path, "qwen2")
    wrapped = train(world, CONFIGS["IA3"](**TARGETS))
    report, out = world.convert()
    assert_same_effect(world, wrapped, out)
    assert report.not_carried == []


def test_an_expansion_that_is_cut_reports_its_loss(tmp_path: Path) -> None:
    world = AdapterWorld.create(tmp_path)
    train(world, CONFIGS["OFT"](**TARGETS))
    report, out = world.convert(output={"dtype": "float32", "max_rank": 4})
    assert read_config(out)["r"] == 4
    assert report.summary["expansion_lost_energy.max"] > 0.01
    assert report.precheck.verdict != "compatible"
    assert report.precheck.measurements["lost_share_logits"] > 0.05


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_lora_that_started_from_the_bases_own_directions_is_relative_to_the_base(
    tmp_path: Path, start: str
) -> None:
    world = AdapterWorld.create(tmp_path)
    wrapped = train(world, peft.LoraConfig(r=3, lora_alpha=6, init_lora_weights=start, **TARGETS))
    report, out = world.convert()
    assert_same_effect(world, wrapped, out)
    assert read_config(out)["r"] == 6
    assert report.not_carried == []


@pytest.mark.parametrize(
    "config",
    [
        peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
        peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    ],
)
def test_types_that_are_no_change_of_weights_are_refused_with_the_way_out(
    tmp_path: Path, config: Any
) -> None:
    world = AdapterWorld.create(tmp_path)
    world.save(peft.get_peft_model(world.load(OLD), config))
    with pytest.raises(UnsupportedAdapter, match=config.peft_type.value) as caught:
        world.convert()
    assert "distill" in str(caught.value.hint)


def test_tensors_that_do_not_fit_the_config_are_refused_by_module(tmp_path: Path) -> None:
    world = AdapterWorld.create(tmp_path)
    train(world, CONFIGS["LOHA"](**TARGETS))
    path = world.hub / SKILL / "adapter_model.safetensors"
    save_file({name: tensor.repeat(2, 1) for name, tensor in load_file(path).items()}, path)
    with pytest.raises(MalformedAdapter, match=r"layers\.0\..*_proj"):
        world.convert()


def test_numbers_that_would_fill_the_memory_are_refused_by_key(tmp_path: Path) -> None:
    world = AdapterWorld.create(tmp_path)
    train(world, CONFIGS["FOURIERFT"](**TARGETS))
    edit_json(world.hub / SKILL / "adapter_config.json", n_frequency=10**12)
    with pytest.raises(MalformedAdapter, match="n_frequency"):
        world.convert()


@pytest.mark.parametrize("name", ["LOHA", "ADALORA"])
def test_an_adapter_that_was_not_trained_is_refused_as_such(tmp_path: Path, name: str) -> None:
    world = AdapterWorld.create(tmp_path)
    world.save(peft.get_peft_model(world.load(OLD), CONFIGS[name](**TARGETS)))
    with pytest.raises(MalformedAdapter, match="zero at every module") as caught:
        world.convert()
    assert caught.value.pointer == "/adapter"
