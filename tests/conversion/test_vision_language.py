"""Adapters of models that also see: the language part moves, the vision tower where shapes agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import rebase
from support.tiny_repos import edit_json

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers, about sizes and tokens of so small a model

IDS = torch.arange(3, 27).view(2, 12)


def make_model(vision_size: int = 32) -> Any:
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 128,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": vision_size,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
        },
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.08)
    return model.eval()


def save(folder: Path, vision_size: int = 32) -> Path:
    make_model(vision_size).save_pretrained(folder)
    edit_json(folder / "config.json", transformers_version=folder.name)
    return folder


def train(folder: Path, base: Path, targets: str) -> PeftModel:
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    wrapped.save_pretrained(str(folder))
    return wrapped


def compute_logits(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=IDS).logits
    return logits


def convert(tmp_path: Path, **parameters: Any) -> tuple[Any, Path]:
    result = rebase.convert(
        str(tmp_path / "adapter"),
        str(tmp_path / "target"),
        source=str(tmp_path / "source"),
        method="copy",
        out=tmp_path / "out",
        output={"dtype": "float32"},
        **parameters,
    )
    return result, tmp_path / "out"


@pytest.mark.parametrize(
    "targets", [r".*language_model.*\.(q_proj|v_proj)", r".*\.(q_proj|v_proj|attn\.qkv|attn\.proj)"]
)
def test_language_and_vision_parts_move_between_equal_models(tmp_path: Path, targets: str) -> None:
    source, target = save(tmp_path / "source"), save(tmp_path / "target")
    wrapped = train(tmp_path / "adapter", source, targets)
    result, out = convert(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(target, dtype=torch.float32)
    moved = PeftModel.from_pretrained(loaded, str(out)).eval()
    torch.testing.assert_close(compute_logits(moved), compute_logits(wrapped), atol=1e-4, rtol=1e-4)
    original = {name: p for name, p in wrapped.named_parameters() if "lora_B" in name}
    scale = wrapped.peft_config["default"].lora_alpha / 4
    for name, parameter in moved.named_parameters():
        if "lora_B" in name:  # the tower too, which no text runs through
            torch.testing.assert_close(parameter, original[name] * scale)
    assert result.report.not_carried == []


def test_a_tower_of_another_size_is_left_behind_by_name(tmp_path: Path) -> None:
    source = save(tmp_path / "source")
    save(tmp_path / "target", vision_size=48)
    train(tmp_path / "adapter", source, r".*\.(q_proj|v_proj|qkv)")
    result, _ = convert(tmp_path)
    assert result.verdict != "compatible"
    assert all("visual" in name for name in result.report.not_carried)
    assert any(reason.code == "tower_lost" for reason in result.report.precheck.reasons)
