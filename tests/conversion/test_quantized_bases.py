"""Conversions from and to quantized bases, end to end, with bitsandbytes and PEFT as the witnesses."""

from __future__ import annotations

import json
from pathlib import Path

import bitsandbytes.functional as bnb
import pytest
import torch
from safetensors.torch import load_file, save_file

from support.conversions import NEW, OLD, AdapterWorld, compute_logits
from support.tiny_repos import edit_json


def quantize(folder: Path) -> dict[str, torch.Tensor]:
    """Store the layers' matrices as bitsandbytes does in 4 bits; returns what they are when dequantized."""
    path = folder / "model.safetensors"
    stored: dict[str, torch.Tensor] = {}
    dequantized: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(path).items():
        if "layers" not in name or tensor.dim() == 1:
            stored[name] = dequantized[name] = tensor
            continue
        packed, state = bnb.quantize_4bit(tensor, blocksize=64, compress_statistics=True, quant_type="nf4")
        parts = {f"{name}.{part}": value for part, value in state.as_dict(packed=True).items()}
        stored |= {name: packed, **parts}
        dequantized[name] = bnb.dequantize_4bit(packed, state)
    save_file(stored, path, metadata={"format": "pt"})
    edit_json(
        folder / "config.json",
        quantization_config={
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
        },
    )
    return dequantized


@pytest.mark.parametrize("repo", [OLD, NEW])
def test_an_adapter_moves_from_and_to_a_quantized_base(tmp_path: Path, repo: str) -> None:
    world = AdapterWorld.create(tmp_path, hidden_size=64, head_dim=16, intermediate_size=128)
    wrapped = world.train_on(world.load(OLD))
    expected = compute_logits(wrapped)
    quantize(world.hub / repo)
    report, out = world.convert()
    side = "source" if repo == OLD else "target"
    assert any(f"The {side} base is quantized (bitsandbytes nf4)" in line for line in report.warnings)
    assert report.verification is not None
    assert report.verification.forward_scope == "whole model"
    if repo == OLD:
        torch.testing.assert_close(compute_logits(world.load_result(out)), expected, atol=2e-4, rtol=2e-4)
    measured = report.precheck.measurements["relative_distance"]
    assert 0.02 < measured < 0.2  # what four bits lose


def test_an_adapter_is_judged_on_the_dequantized_weights(tmp_path: Path) -> None:
    world = AdapterWorld.create(tmp_path, hidden_size=64, head_dim=16, intermediate_size=128)
    world.train_on(world.load(OLD))
    dequantized = quantize(world.hub / OLD)
    save_file(dequantized, world.hub / NEW / "model.safetensors", metadata={"format": "pt"})
    report, _ = world.convert()
    assert report.precheck.measurements["relative_distance"] == 0.0
    assert json.loads((world.hub / OLD / "config.json").read_text())["quantization_config"]
