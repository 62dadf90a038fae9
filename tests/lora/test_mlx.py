"""Adapters of mlx-lm, read into PEFT's form."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rebase.errors import MalformedAdapter, UnsupportedAdapter
from rebase.lora.config import AdapterConfig
from rebase.lora.mlx import MlxReader, is_mlx_config, read_mlx_config
from support.tiny_models import FolderReader

CONFIG: dict[str, Any] = {
    "adapter_path": "adapters",
    "fine_tune_type": "lora",
    "num_layers": 16,
    "lora_parameters": {"rank": 8, "scale": 20.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]},
    "model": "acme/base",
}


@pytest.mark.parametrize("scale", [20.0, 0.1, 1 / 3, -2.0, 7])
def test_the_scale_is_used_as_it_stands(scale: float) -> None:
    raw = read_mlx_config(CONFIG | {"lora_parameters": {"rank": 6, "scale": scale}})
    config = AdapterConfig.parse(raw)
    assert config.compute_scale("model.layers.0.self_attn.q_proj") == pytest.approx(scale, rel=1e-15)
    assert (config.rank, config.base_model) == (6, "acme/base")


@pytest.mark.parametrize(
    ("config", "is_mlx"),
    [
        (CONFIG, True),
        ({"fine_tune_type": "full"}, True),
        ({"peft_type": "LORA", "r": 4}, False),
        ({"r": 4}, False),
    ],
)
def test_a_config_of_mlx_lm_is_told_from_one_of_peft(config: dict[str, Any], is_mlx: bool) -> None:
    assert is_mlx_config(config) is is_mlx


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"fine_tune_type": "full"}, "whole weights, not a LoRA"),
        ({"fine_tune_type": "dora"}, "fine_tune_type 'dora'"),
        ({"fine_tune_type": ..., "use_dora": True}, "fine_tune_type 'dora'"),
        ({"lora_parameters": {"rank": 8, "scale": 10.0, "alpha": 16}}, r"both 'scale' and 'alpha'"),
    ],
)
def test_what_cannot_be_read_is_said(change: dict[str, Any], cause: str) -> None:
    config = {key: value for key, value in (CONFIG | change).items() if value is not ...}
    with pytest.raises(UnsupportedAdapter, match=cause) as caught:
        read_mlx_config(config)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("parameters", "cause"),
    [
        (None, "lora_parameters"),
        ({"scale": 1.0}, "rank"),
        ({"rank": 0, "scale": 1.0}, "rank"),
        ({"rank": True, "scale": 1.0}, "rank"),
        ({"rank": 8}, "scale"),
        ({"rank": 8, "scale": "20"}, "scale"),
    ],
)
def test_a_config_without_what_the_update_needs_is_malformed(parameters: object, cause: str) -> None:
    with pytest.raises(MalformedAdapter, match=cause):
        read_mlx_config(CONFIG | {"lora_parameters": parameters})


def test_the_factors_are_transposed_and_named_as_peft_names_them() -> None:
    module = "model.layers.0.self_attn.q_proj"
    lora_a, lora_b = torch.randn(32, 4), torch.randn(4, 24)
    reader = MlxReader(FolderReader({f"{module}.lora_a": lora_a, f"{module}.lora_b": lora_b}))
    prefix = f"base_model.model.{module}"
    assert {name: info.shape for name, info in reader.infos().items()} == {
        f"{prefix}.lora_A.weight": (4, 32),
        f"{prefix}.lora_B.weight": (24, 4),
    }
    assert torch.equal(reader.read(f"{prefix}.lora_A.weight"), lora_a.T)
    assert torch.equal(reader.read_rows(f"{prefix}.lora_B.weight", 3, 7), lora_b.T[3:7])


def test_lora_on_the_embedding_has_the_name_that_peft_gives_it() -> None:
    reader = MlxReader(FolderReader({"model.embed_tokens.lora_a": torch.ones(96, 4)}))
    assert list(reader.infos()) == ["base_model.model.model.embed_tokens.lora_embedding_A"]


@pytest.mark.parametrize(
    ("name", "shape", "cause"),
    [
        ("model.layers.0.self_attn.q_proj.m", (32,), "magnitude of mlx-lm's DoRA"),
        ("model.layers.0.mlp.switch_mlp.up_proj.lora_a", (8, 4, 32), "stacked experts"),
    ],
)
def test_a_tensor_that_has_no_place_in_a_plain_lora_is_said(
    name: str, shape: tuple[int, ...], cause: str
) -> None:
    with pytest.raises(UnsupportedAdapter, match=cause):
        MlxReader(FolderReader({name: torch.ones(shape)})).infos()
