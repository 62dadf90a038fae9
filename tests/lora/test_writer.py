"""Written adapters: loaded by PEFT itself, and read by the rules of loaders that know less than PEFT."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from rebase.errors import VerificationFailed
from rebase.lora.config import AdapterConfig
from rebase.lora.low_rank import LowRank, Role, Site
from rebase.lora.reader import read_adapter
from rebase.lora.writer import build_adapter
from rebase.models.families import FAMILIES
from support.tiny_models import (
    TINY_CONFIGS,
    FolderReader,
    names_in,
    tiny_model,
    token_batch,
    weights_of,
    with_adapter,
)

DEFAULTS = {"dtype": "float32", "max_rank": None, "base_model": "acme/target", "revision": "0" * 40}


def _random_deltas(weights, *, rank=3, seed=0, sites=None):
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for site in weights.sites if sites is None else sites:
        o, i = weights.shape(site)
        B = torch.randn(o, rank, generator=generator) * 0.1
        deltas[site] = LowRank(B, torch.randn(rank, i, generator=generator) * 0.1)
    return deltas


def _load(folder, model, built):
    save_file(built.tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(built.config))
    return PeftModel.from_pretrained(model, folder).eval()


def _merged_by_hand(model_type, deltas):
    """Logits of a model whose weights got the dense updates added, module by module."""
    model = tiny_model(model_type)
    weights = weights_of(model)
    arch = weights.architecture
    with torch.no_grad():
        for site, delta in deltas.items():
            weight = model.get_submodule(arch.get_module_name(site)).weight
            view = weight.T if arch.family.transposed else weight
            rows = arch.get_output_rows(site)
            view[slice(None) if rows is None else rows] += delta.B @ delta.A
    return model(token_batch()).logits.detach()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_peft_computes_the_same_logits_as_weights_changed_by_hand(model_type, tmp_path):
    model = tiny_model(model_type)
    deltas = _random_deltas(weights_of(model))
    built = build_adapter(weights_of(model), deltas, **DEFAULTS)
    loaded = _load(tmp_path, model, built)
    logits = loaded(token_batch()).logits.detach()
    expected = _merged_by_hand(model_type, deltas)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits, tiny_model(model_type)(token_batch()).logits, atol=1e-3)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "phi3", "gpt_neox"])
@pytest.mark.parametrize("kept", ["attention_only", "one_role", "one_layer"])
def test_an_update_of_some_sites_changes_exactly_those(model_type, kept, tmp_path):
    model = tiny_model(model_type)
    weights = weights_of(model)
    chosen = {
        "attention_only": lambda site: site.role in {Role.Q, Role.O},
        "one_role": lambda site: site.role is Role.DOWN,
        "one_layer": lambda site: site == Site(1, Role.K),
    }[kept]
    deltas = _random_deltas(weights, sites=[site for site in weights.sites if chosen(site)])
    built = build_adapter(weights, deltas, **DEFAULTS)
    loaded = _load(tmp_path, model, built)
    adapted = {
        name for name, module in loaded.base_model.model.named_modules() if hasattr(module, "lora_A")
    } - {""}
    written = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in built.tensors}
    assert adapted == written
    expected = _merged_by_hand(model_type, deltas)
    torch.testing.assert_close(loaded(token_batch()).logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_tensor_names_and_shapes_are_those_that_peft_itself_saves(model_type, tmp_path):
    model = tiny_model(model_type)
    weights = weights_of(model)
    built = build_adapter(weights, _random_deltas(weights), **DEFAULTS)
    layout = FAMILIES[model_type].layout
    own = with_adapter(
        model,
        r=built.rank,
        lora_alpha=built.rank,
        target_modules=[part.rpartition(".")[2] for part in layout],
        fan_in_fan_out=FAMILIES[model_type].transposed,
    )
    own.save_pretrained(tmp_path)
    assert names_in(tmp_path / "adapter_model.safetensors") == sorted(built.tensors)
    state = FolderReader.of(tmp_path).tensors
    assert all(built.tensors[name].shape == tensor.shape for name, tensor in state.items())


@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_is_written_is_read_back_as_the_same_updates(model_type):
    weights = weights_of(tiny_model(model_type))
    deltas = _random_deltas(weights)
    built = build_adapter(weights, deltas, **DEFAULTS)
    again = read_adapter(AdapterConfig.parse(built.config), FolderReader(built.tensors), weights)
    for site, delta in deltas.items():
        found = again.delta(site)
        torch.testing.assert_close(found.B @ found.A, delta.B @ delta.A, atol=1e-6, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    model_type=st.sampled_from(["llama", "gpt2", "phi3", "gpt_neox"]),
    ranks=st.lists(st.integers(1, 12), min_size=14, max_size=14),
    keep=st.lists(st.booleans(), min_size=14, max_size=14),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    max_rank=st.sampled_from([None, 1, 4, 64]),
)
def test_loaders_that_know_only_the_global_rank_and_alpha_apply_the_right_update(
    model_type, ranks, keep, dtype, max_rank
):
    """vLLM takes one r and one alpha from the config; llama.cpp scales by alpha over the tensor's rank."""
    weights = weights_of(_BASES[model_type])
    deltas = {}
    for number, site in enumerate(weights.sites):
        if keep[number] or number == 0:
            deltas |= _random_deltas(weights, rank=ranks[number], seed=number, sites=[site])
    built = build_adapter(weights, deltas, **(DEFAULTS | {"dtype": dtype, "max_rank": max_rank}))
    config = built.config
    assert config["r"] == config["lora_alpha"] == built.rank
    assert max_rank is None or built.rank <= max_rank
    assert not config["use_rslora"]
    assert not config["rank_pattern"]
    assert not config["alpha_pattern"]
    assert not config["modules_to_save"]
    assert config["bias"] == "none"
    assert list(built.tensors) == sorted(built.tensors)
    for name, tensor in built.tensors.items():
        assert tensor.dtype == getattr(torch, dtype)
        assert tensor.is_contiguous()
        assert tensor.shape["lora_B" in name] == built.rank
        assert config["lora_alpha"] / tensor.shape["lora_B" in name] == 1.0
    if max_rank is None:
        tolerance = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
        assert all(row["written_error"] < tolerance for row in built.measurements.values())
        assert all("truncation_lost_energy" not in row for row in built.measurements.values())


_BASES = {name: tiny_model(name) for name in ("llama", "gpt2", "phi3", "gpt_neox")}


def test_truncation_keeps_the_best_directions_and_reports_the_loss_per_site():
    weights = weights_of(_BASES["llama"])
    deltas = _random_deltas(weights, rank=8)
    built = build_adapter(weights, deltas, **(DEFAULTS | {"max_rank": 3}))
    assert built.rank == 3
    for site, delta in deltas.items():
        values = torch.linalg.svdvals(delta.B @ delta.A)
        lost = (values[3:].square().sum() / values.square().sum()).item()
        row = built.measurements[site]
        assert row["truncation_lost_energy"] == pytest.approx(lost, rel=1e-4)
        assert row["written_error"] == pytest.approx(lost**0.5, rel=1e-4)
        assert row["written_norm"] == pytest.approx(values[:3].square().sum().sqrt().item(), rel=1e-4)


def test_a_fused_adapter_carried_unchanged_keeps_its_rank():
    weights = weights_of(_BASES["phi3"])
    A = torch.randn(3, 32)
    deltas = {
        Site(0, role): LowRank(torch.randn(weights.shape(Site(0, role))[0], 3), A)
        for role in (Role.Q, Role.K, Role.V)
    }
    assert build_adapter(weights, deltas, **DEFAULTS).rank == 3


def test_a_fused_rank_never_exceeds_what_the_module_can_hold():
    weights = weights_of(_BASES["gpt2"])
    built = build_adapter(weights, _random_deltas(weights, rank=20), **DEFAULTS)
    assert built.rank == 32
    assert max(row["written_error"] for row in built.measurements.values()) < 1e-5


def test_same_updates_give_the_same_bytes():
    weights = weights_of(_BASES["phi3"])
    once = build_adapter(weights, _random_deltas(weights), **(DEFAULTS | {"max_rank": 2}))
    reordered = dict(reversed(_random_deltas(weights).items()))
    twice = build_adapter(weights, reordered, **(DEFAULTS | {"max_rank": 2}))
    assert json.dumps(once.config) == json.dumps(twice.config)
    assert list(once.config) == sorted(once.config)
    assert list(once.tensors) == list(twice.tensors)
    assert all(torch.equal(once.tensors[name], twice.tensors[name]) for name in once.tensors)


def test_target_modules_are_real_suffixes_without_bystanders():
    weights = weights_of(_BASES["gpt2"])

    def names(*roles):
        deltas = _random_deltas(weights, sites=[Site(0, role) for role in roles])
        return build_adapter(weights, deltas, **DEFAULTS).config["target_modules"]

    assert names(Role.Q) == ["c_attn"]
    assert names(Role.O) == ["attn.c_proj"]
    assert names(Role.DOWN) == ["mlp.c_proj"]
    assert names(Role.O, Role.DOWN) == ["c_proj"]


def test_a_nested_gemma3_gets_its_updates_and_its_vision_tower_stays_untouched(tmp_path):
    vision = {"num_hidden_layers": 1, "hidden_size": 24, "intermediate_size": 16, "image_size": 28}
    config = AutoConfig.for_model(
        "gemma3", text_config=TINY_CONFIGS["gemma3_text"], vision_config=vision | {"patch_size": 14}
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    weights = weights_of(model)
    deltas = _random_deltas(weights, sites=[Site(0, Role.Q), Site(1, Role.Q)])
    built = build_adapter(weights, deltas, **DEFAULTS)
    names = [f"model.language_model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)]
    assert built.config["target_modules"] == names
    loaded = _load(tmp_path, model, built).base_model.model
    assert [name for name, module in loaded.named_modules() if hasattr(module, "lora_A")] == names
    found = loaded.get_submodule(names[1]).get_delta_weight("default")
    torch.testing.assert_close(found, deltas[Site(1, Role.Q)].B @ deltas[Site(1, Role.Q)].A)


def test_the_config_names_the_target_and_its_revision():
    weights = weights_of(_BASES["llama"])
    built = build_adapter(weights, _random_deltas(weights), **DEFAULTS)
    assert built.config["base_model_name_or_path"] == "acme/target"
    assert built.config["revision"] == "0" * 40


def _with(site, B, A):
    return lambda deltas: deltas.update({site: LowRank(B, A)})


@pytest.mark.parametrize(
    ("change", "dtype", "named"),
    [
        (lambda deltas: deltas.clear(), "float32", "no update"),
        (_with(Site(0, Role.Q), torch.zeros(31, 2), torch.zeros(2, 32)), "float32", "0.q_proj has shape"),
        (_with(Site(9, Role.Q), torch.zeros(32, 2), torch.zeros(2, 32)), "float32", "9.q_proj"),
        (_with(Site(0, Role.Q), torch.full((32, 2), torch.nan), torch.zeros(2, 32)), "float32", "NaN"),
        (_with(Site(0, Role.Q), torch.full((32, 2), 1e6), torch.ones(2, 32)), "float16", "does not fit"),
        (_with(Site(0, Role.Q), torch.full((32, 2), 1e-12), torch.ones(2, 32)), "float16", "becomes zero"),
    ],
)
def test_updates_that_cannot_be_written_are_refused_by_site(change, dtype, named):
    weights = weights_of(_BASES["llama"])
    deltas = _random_deltas(weights)
    change(deltas)
    with pytest.raises(VerificationFailed, match=named):
        build_adapter(weights, deltas, **(DEFAULTS | {"dtype": dtype}))


def test_updates_that_are_all_zero_are_written_with_rank_one():
    weights = weights_of(_BASES["llama"])
    built = build_adapter(
        weights, {Site(0, Role.Q): LowRank(torch.zeros(32, 0), torch.zeros(0, 32))}, **DEFAULTS
    )
    assert built.rank == 1
    assert built.measurements[Site(0, Role.Q)] == {"written_norm": 0.0, "written_error": 0.0}
