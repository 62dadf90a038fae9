"""Every row of the family table against the model that transformers builds for it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rebase.errors import UnsupportedModel
from rebase.lora.low_rank import Role, Site
from rebase.models.architecture import get_architecture
from rebase.models.families import FAMILIES
from support.tiny_models import TINY_CONFIGS

LLAMA = {"model_type": "llama", **TINY_CONFIGS["llama"]}


def test_every_family_has_a_tiny_model_that_it_is_tested_with():
    assert set(FAMILIES) == set(TINY_CONFIGS)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_modules_shapes_and_tensor_names_of_a_row_are_those_of_transformers(model_type):
    config = AutoConfig.for_model(model_type, **TINY_CONFIGS[model_type])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    architecture = get_architecture(config.to_dict())
    state = model.state_dict()
    for site in architecture.sites:
        name = architecture.get_module_name(site)
        assert model.get_submodule(name) is not None
        weight = state[f"{name}.weight"]
        o, i = tuple(weight.T.shape if architecture.family.transposed else weight.shape)
        beside = architecture.list_fused_roles(site)
        assert i == architecture.in_features(site.role)
        assert o == sum(architecture.out_features(role) for role in beside)
        assert site in architecture.find_module_sites(name)
    stem = f"{architecture.root}{architecture.get_layer_name(0)}"
    assert f"{architecture.root}{architecture.family.embedding}.weight" in state
    assert f"{stem}.{architecture.family.attention_norm}.weight" in state
    assert f"{stem}.{architecture.family.mlp_norm}.weight" in state


@pytest.mark.parametrize("model_type", FAMILIES)
def test_no_linear_module_of_a_decoder_layer_is_forgotten(model_type):
    config = AutoConfig.for_model(model_type, **TINY_CONFIGS[model_type])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    architecture = get_architecture(config.to_dict())
    named = {architecture.get_module_name(site) for site in architecture.sites}
    linear = {
        name
        for name, module in model.named_modules()
        if type(module).__name__ in {"Linear", "Conv1D"} and name != "lm_head"
    }
    assert linear == named


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_defaults_of_a_row_are_those_of_the_transformers_configuration(model_type):
    reference = AutoConfig.for_model(model_type).to_dict()
    for key, value in FAMILIES[model_type].defaults.items():
        assert reference[key] == value, key


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_rows_of_all_roles_cover_a_fused_module_exactly_once(model_type):
    architecture = get_architecture({"model_type": model_type, **TINY_CONFIGS[model_type]})
    for roles in architecture.family.layout.values():
        total = sum(architecture.out_features(role) for role in roles)
        index = torch.arange(total)
        parts = [
            index if (rows := architecture.get_output_rows(Site(0, role))) is None else index[rows]
            for role in roles
        ]
        assert torch.equal(torch.cat(parts).sort().values, index)


def test_a_nested_gemma3_keeps_its_text_model_under_its_own_prefix():
    text = {"model_type": "gemma3_text", **TINY_CONFIGS["gemma3_text"]}
    architecture = get_architecture({"model_type": "gemma3", "text_config": text})
    config = AutoConfig.for_model(
        "gemma3",
        text_config=TINY_CONFIGS["gemma3_text"],
        vision_config={"num_hidden_layers": 1, "hidden_size": 24, "intermediate_size": 16},
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    for site in architecture.sites:
        weight = model.get_submodule(architecture.get_module_name(site)).weight
        assert tuple(weight.shape) == (
            architecture.out_features(site.role),
            architecture.in_features(site.role),
        )


def test_a_nested_gemma3_config_may_leave_out_what_equals_the_defaults():
    text = {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
    }
    architecture = get_architecture({"model_type": "gemma3", "text_config": text})
    assert (architecture.n_heads, architecture.n_kv_heads, architecture.head_dim) == (8, 4, 256)


def test_module_names_are_known_under_every_published_prefix():
    architecture = get_architecture(LLAMA)
    site = Site(1, Role.Q)
    for prefix in ("model.", "", "language_model.model.", "model.language_model."):
        assert architecture.find_module_sites(f"{prefix}layers.1.self_attn.q_proj") == (site,)
    for wrong in (
        "vision.layers.1.self_attn.q_proj",
        "model.layers.2.self_attn.q_proj",
        "model.layers.1.self_attn.c_attn",
        "lm_head",
        "model.layers.1.self_attn.q_proj.extra",
    ):
        assert architecture.find_module_sites(wrong) == ()


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({}, "None"),
        ({"model_type": "brand_new"}, "brand_new"),
        ({"model_type": "granite", "num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"model_type": "qwen3_moe", "num_experts": 10**6}, "num_experts"),
        ({"model_type": ["llama"]}, "llama"),
        (LLAMA | {"hidden_size": "32"}, "hidden_size"),
        (LLAMA | {"hidden_size": True}, "hidden_size"),
        (LLAMA | {"num_hidden_layers": 0}, "num_hidden_layers"),
        (LLAMA | {"num_hidden_layers": 10**6}, "1000000 layers"),
        (LLAMA | {"num_key_value_heads": 3}, "3 key-value heads"),
        (LLAMA | {"rms_norm_eps": "tiny"}, "rms_norm_eps"),
        ({"model_type": "llama"}, "hidden_size"),
        ({"model_type": "gemma3", "text_config": "none"}, "hidden_size"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_by_name(config, named):
    with pytest.raises(UnsupportedModel, match=named):
        get_architecture(config)
