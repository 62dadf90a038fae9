"""Moves an adapter between two equal tiny models of one type through the engine, and compares with PEFT."""

from __future__ import annotations

import copy
import gc
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import rebase
from rebase.models.architecture import get_architecture
from support.causal_types import make_tiny_config
from support.tiny_repos import edit_json

MAX_PARAMETERS = 50_000_000
# PEFT refuses LoRA on these modules of state-space models.
_REFUSED_LEAVES = ("out_proj", "conv1d")
_PEFT_MAMBA_TYPES = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h", "zamba", "zamba2")


@dataclass(frozen=True)
class SweepResult:
    """`effect`: ‖logits with − without the adapter‖; `error`: how far the moved adapter's effect is from it,
    relative; `modules`: with LoRA; `left_behind`: what the report says."""

    effect: float
    error: float
    modules: int
    verdict: str
    left_behind: tuple[str, ...]


def move_between_equal_models(model_type: str, folder: Path) -> SweepResult:
    """Random weights, LoRA on every linear module of the layers that PEFT accepts, method `copy`."""
    config = make_tiny_config(model_type)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > MAX_PARAMETERS:
        raise ValueError(f"the tiny {model_type} has {size} parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).float().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.08)
    for name in ("source", "target"):
        model.save_pretrained(folder / name)
    edit_json(folder / "target" / "config.json", transformers_version="5")
    raw = json.loads((folder / "source" / "config.json").read_text())
    architecture = get_architecture(raw)
    names = sorted({architecture.get_module_name(site) for site in architecture.sites})
    if model_type in _PEFT_MAMBA_TYPES:
        names = [name for name in names if not name.endswith(_REFUSED_LEAVES)]
    if model_type == "laguna":  # PEFT 0.21 misnames the tensors of these
        names = [name for name in names if "shared_experts" not in name]
    lora = LoraConfig(
        r=2,
        lora_alpha=4,
        target_modules=names,
        task_type="CAUSAL_LM",
        fan_in_fan_out=architecture.family.transposed,
    )
    source = AutoModelForCausalLM.from_pretrained(folder / "source", dtype=torch.float32).eval()
    wrapped = get_peft_model(source, lora).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    wrapped.save_pretrained(folder / "adapter")
    ids = torch.randint(3, 120, (2, 12), generator=generator)
    with torch.no_grad():
        expected = wrapped(input_ids=ids).logits
        with wrapped.disable_adapter():
            base = wrapped(input_ids=ids).logits
    result = rebase.convert(
        str(folder / "adapter"),
        str(folder / "target"),
        source=str(folder / "source"),
        method="copy",
        out=folder / "out",
        output={"dtype": "float32"},
    )
    target = AutoModelForCausalLM.from_pretrained(folder / "target", dtype=torch.float32)
    moved = PeftModel.from_pretrained(target, str(folder / "out")).eval()
    with torch.no_grad():
        logits = moved(input_ids=ids).logits
    effect = float((expected - base).norm())
    gc.collect()
    return SweepResult(
        effect,
        float((logits - expected).norm()) / max(effect, 1e-30),
        len(names),
        result.verdict,
        tuple(result.report.not_carried),
    )


def describe(result: Any) -> str:
    """One line."""
    return f"{result.modules} modules, effect {result.effect:.3g}, error {result.error:.1e}, {result.verdict}"
