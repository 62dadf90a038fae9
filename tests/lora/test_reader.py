"""Adapters that PEFT wrote, read back site by site, with PEFT's own arithmetic as the witness."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rebase.errors import MalformedAdapter, UnsupportedAdapter
from rebase.lora.config import AdapterConfig
from rebase.lora.low_rank import Role, Site
from rebase.lora.reader import read_adapter
from rebase.models.families import FAMILIES
from support.tiny_models import (
    FolderReader,
    open_adapter_folder,
    save_adapter,
    tiny_model,
    weights_of,
    with_adapter,
)

CPU = {"r": 4, "lora_alpha": 8}


def _targets(model_type):
    return [part.rpartition(".")[2] for part in FAMILIES[model_type].layout]


def _lora(model_type, **changes):
    return {
        **CPU,
        "target_modules": _targets(model_type),
        "fan_in_fan_out": FAMILIES[model_type].transposed,
        **changes,
    }


def _expected(peft_model, weights, site):
    """PEFT's dense update of the site's module, in y = W x orientation, cut to the role."""
    layer = peft_model.base_model.model.get_submodule(weights.architecture.get_module_name(site))
    dense = layer.get_delta_weight("default").detach()
    dense = dense.T if weights.architecture.family.transposed else dense
    rows = weights.architecture.get_output_rows(site)
    return dense if rows is None else dense[rows]


def _read(tmp_path, model, weights, *, max_rank=256, **lora):
    config, reader = open_adapter_folder(save_adapter(tmp_path, model, **lora))
    return read_adapter(AdapterConfig.parse(config), reader, weights, max_rank=max_rank)


def _plain(model_type="llama", **changes):
    """(model weights, raw config, tensors) of a small adapter, to be damaged by a test."""
    model = tiny_model(model_type)
    weights = weights_of(model)
    peft_model = with_adapter(model, **_lora(model_type, **changes))
    tensors = {
        name.replace(".default.", "."): tensor.detach().clone()
        for name, tensor in peft_model.state_dict().items()
        if "lora_" in name
    }
    config = {"peft_type": "LORA", **_lora(model_type, **changes)}
    return weights, config, tensors


def _open(weights, config, tensors, **limits):
    return read_adapter(AdapterConfig.parse(config), FolderReader(tensors), weights, **limits)


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_sites_update_equals_pefts_delta_weight(model_type, tmp_path):
    model = tiny_model(model_type)
    weights = weights_of(model)
    adapter = _read(tmp_path, model, weights, **_lora(model_type))
    witness = with_adapter(tiny_model(model_type), **_lora(model_type))
    assert adapter.sites == weights.sites
    assert adapter.rank == 4
    assert adapter.warnings == adapter.left_behind == ()
    for site in adapter.sites:
        delta = adapter.delta(site)
        assert delta.B.dtype == delta.A.dtype == torch.float32
        assert delta.shape == weights.shape(site)
        torch.testing.assert_close(delta.B @ delta.A, _expected(witness, weights, site), atol=1e-6, rtol=1e-5)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rank=st.integers(1, 9),
    alpha=st.integers(1, 64),
    rslora=st.booleans(),
    ranks=st.dictionaries(
        st.sampled_from(["q_proj", r"layers.1.*", "^model.layers.0.mlp.*", "down_proj"]),
        st.integers(1, 6),
        max_size=2,
    ),
    alphas=st.dictionaries(
        st.sampled_from(["v_proj", r".*\.0\..*_proj", "mlp.up_proj"]), st.integers(1, 32), max_size=2
    ),
)
def test_any_mix_of_ranks_alphas_and_patterns_reads_as_peft_reads_it(rank, alpha, rslora, ranks, alphas):
    lora = {
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": rslora,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": "all-linear",
    }
    model = tiny_model("llama")
    weights = weights_of(model)
    witness = with_adapter(model, **lora)
    tensors = {
        name.replace(".default.", "."): tensor
        for name, tensor in witness.state_dict().items()
        if "lora_" in name
    }
    adapter = _open(weights, {"peft_type": "LORA", **lora}, tensors)
    for site in adapter.sites:
        delta = adapter.delta(site)
        torch.testing.assert_close(delta.B @ delta.A, _expected(witness, weights, site), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_adapters_come_as_float32(dtype):
    weights, config, tensors = _plain()
    halves = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    delta = _open(weights, config, halves).delta(Site(0, Role.Q))
    expected = halves[f"{Q0}.lora_B.weight"].float() @ halves[f"{Q0}.lora_A.weight"].float() * 2
    torch.testing.assert_close(delta.B @ delta.A, expected)


def test_tensor_names_may_keep_the_adapters_name_and_miss_the_outer_prefix():
    weights, config, tensors = _plain()
    expected = _open(weights, config, tensors).delta(Site(1, Role.UP))
    renamed = {
        name.removeprefix("base_model.model.").replace(".weight", ".mine.weight"): tensor
        for name, tensor in tensors.items()
    }
    assert torch.equal(_open(weights, config, renamed).delta(Site(1, Role.UP)).B, expected.B)


def test_nothing_is_read_before_a_site_is_asked_for():
    weights, config, tensors = _plain()
    reader = FolderReader(tensors)
    adapter = read_adapter(AdapterConfig.parse(config), reader, weights)
    assert reader.reads == []
    adapter.delta(Site(0, Role.Q))
    assert reader.reads == [f"{Q0}.lora_A.weight", f"{Q0}.lora_B.weight"]


@pytest.mark.parametrize("model_type", ["llama", "phi3", "gpt2", "gpt_neox"])
def test_a_dora_adapter_of_full_rank_expands_to_pefts_merged_weights(model_type, tmp_path):
    model = tiny_model(model_type)
    weights = weights_of(model)
    lora = _lora(model_type, r=64, use_dora=True)
    adapter = _read(tmp_path, model, weights, **lora)
    merged = weights_of(with_adapter(tiny_model(model_type), **lora).merge_and_unload())
    for site in adapter.sites:
        delta = adapter.delta(site)
        expected = merged.weight(site) - weights.weight(site)
        torch.testing.assert_close(delta.B @ delta.A, expected, atol=2e-4, rtol=1e-3)
        assert adapter.measurements[site]["dora_lost_energy"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("max_rank", [4, 12, 256])
def test_a_dora_update_grows_to_the_allowed_rank_and_reports_what_the_best_truncation_loses(
    tmp_path, max_rank
):
    model = tiny_model("qwen2")
    weights = weights_of(model)
    lora = _lora("qwen2", use_dora=True)
    adapter = _read(tmp_path, model, weights, max_rank=max_rank, **lora)
    merged = weights_of(with_adapter(tiny_model("qwen2"), **lora).merge_and_unload())
    site = Site(1, Role.DOWN)
    delta = adapter.delta(site)
    assert delta.rank <= max_rank
    dense = merged.weight(site) - weights.weight(site)
    left = torch.linalg.svdvals(dense)[delta.rank :].square().sum() / dense.square().sum()
    lost = (dense - delta.B @ delta.A).square().sum() / dense.square().sum()
    assert lost.item() == pytest.approx(left.item(), rel=1e-3, abs=1e-6)
    assert adapter.measurements[site]["dora_lost_energy"] == pytest.approx(left.item(), rel=1e-3, abs=1e-6)
    assert left.item() < 0.001 or delta.rank == max_rank
    torch.testing.assert_close(adapter.exact_update(site), dense, atol=2e-5, rtol=1e-3)


def test_fully_trained_norms_are_parameters_of_the_base(tmp_path):
    model = tiny_model("llama")
    weights = weights_of(model)
    adapter = _read(tmp_path, model, weights, **_lora("llama", modules_to_save=["lm_head", "norm"]))
    names = {parameter.name: parameter for parameter in adapter.parameters}
    assert {"model.norm.weight", "model.layers.0.input_layernorm.weight"} <= names.keys()
    assert {parameter.kind for parameter in adapter.parameters} == {"norm"}
    assert torch.equal(adapter.read_parameter(names["model.norm.weight"]), model.model.norm.weight)


def test_trained_biases_are_parameters_of_the_base(tmp_path):
    model = tiny_model("qwen2")
    adapter = _read(tmp_path, model, weights_of(model), **_lora("qwen2", bias="lora_only"))
    names = {parameter.name: parameter.kind for parameter in adapter.parameters}
    assert names["model.layers.1.self_attn.k_proj.bias"] == "bias"
    assert len(names) == 6  # q, k and v of two layers


def test_a_whole_trained_head_is_a_table_with_a_row_per_token(tmp_path):
    model = tiny_model("llama")
    adapter = _read(tmp_path, model, weights_of(model), **_lora("llama", modules_to_save=["lm_head"]))
    (table,) = adapter.tables
    assert (table.module, table.rows, table.ids, table.named_in_config) == ("lm_head", 96, None, True)
    assert torch.equal(adapter.read_table_rows(table, 3, 9), model.lm_head.weight[3:9])
    assert adapter.left_behind == adapter.warnings == ()


@pytest.mark.parametrize("indices", [[6, 5], {"embed_tokens": [6, 5]}])
def test_retrained_tokens_are_rows_in_the_order_of_the_config(indices, tmp_path):
    model = tiny_model("llama")
    adapter = _read(tmp_path, model, weights_of(model), **_lora("llama", trainable_token_indices=indices))
    (table,) = adapter.tables
    assert (table.module, table.ids) == ("model.embed_tokens", (6, 5))
    assert torch.equal(adapter.read_table_rows(table, 0, 1)[0], model.get_input_embeddings().weight[6])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("tied", [True, False])
def test_copies_of_the_base_beside_trained_tokens_are_no_training(tied, tmp_path):
    model = tiny_model("llama", tie_word_embeddings=tied)
    weights = weights_of(model)
    wrapped = with_adapter(model, **_lora("llama", trainable_token_indices=[5, 6]))
    wrapped.save_pretrained(str(tmp_path), save_embedding_layers=True)
    config, reader = open_adapter_folder(tmp_path)
    assert any("base_layer" in name for name in reader.infos())
    adapter = read_adapter(AdapterConfig.parse(config), reader, weights)
    assert [table.module for table in adapter.tables if table.ids] == ["model.embed_tokens"]
    assert adapter.left_behind == adapter.warnings == ()


@pytest.mark.parametrize(
    ("indices", "rows", "complaint"),
    [([5], (2, 32), "names 1 token"), ([5, 6], (2, 16), "does not fit"), ([-1, 6], (2, 32), "token ids")],
)
def test_rows_of_tokens_that_contradict_config_or_base_are_refused(indices, rows, complaint):
    weights, config, tensors = _plain()
    name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    with pytest.raises(MalformedAdapter, match=complaint):
        _open(weights, config | {"trainable_token_indices": indices}, tensors | {name: torch.zeros(rows)})


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lora_on_the_embedding_and_the_head_is_read_as_pefts_change_of_the_tables(tmp_path):
    model = tiny_model("llama")
    lora = _lora("llama", target_modules=[*_targets("llama"), "embed_tokens", "lm_head"])
    adapter = _read(tmp_path, model, weights_of(model), **lora)
    merged = with_adapter(tiny_model("llama"), **lora).merge_and_unload()
    witness = {
        "model.embed_tokens": (merged.get_input_embeddings(), model.get_input_embeddings()),
        "lm_head": (merged.get_output_embeddings(), model.get_output_embeddings()),
    }
    assert {part.module for part in adapter.vocabulary_loras} == witness.keys()
    for part in adapter.vocabulary_loras:
        update = adapter.read_vocabulary_lora(part)
        after, before = witness[part.module]
        torch.testing.assert_close(update.B @ update.A, after.weight - before.weight, atol=1e-6, rtol=1e-5)


def test_an_adapter_with_nothing_but_a_trained_head_is_refused():
    weights, config, _ = _plain()
    with pytest.raises(UnsupportedAdapter, match="only trained lm_head"):
        _open(weights, config, {"base_model.model.lm_head.weight": torch.zeros(96, 32)})


def test_tensors_that_the_config_does_not_target_are_left_out_with_a_warning():
    weights, config, tensors = _plain()
    adapter = _open(weights, config | {"target_modules": ["q_proj"]}, tensors)
    assert {site.role for site in adapter.sites} == {Role.Q}
    assert "PEFT ignores them" in adapter.warnings[0]
    assert "mlp.down_proj" in adapter.warnings[0]


def test_a_config_that_targets_none_of_the_tensors_is_refused():
    weights, config, tensors = _plain()
    with pytest.raises(MalformedAdapter, match="no LoRA tensors"):
        _open(weights, config | {"target_modules": ["c_attn"]}, tensors)
    with pytest.raises(MalformedAdapter, match="no LoRA tensors"):
        _open(weights, config, {})


def _rename(old, new):
    def change(tensors):
        tensors[new] = tensors.pop(old)

    return change


def _set(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        (lambda t: t.pop(f"{Q0}.lora_B.weight"), MalformedAdapter, "lacks its lora_B"),
        (lambda t: t.pop(f"{Q0}.lora_A.weight"), MalformedAdapter, "lacks its lora_A"),
        (_set(f"{Q0}.lora_A.weight", torch.zeros(4, 31)), MalformedAdapter, "source base does not fit"),
        (_set(f"{Q0}.lora_B.weight", torch.zeros(33, 4)), MalformedAdapter, r"\[32, 4\], but has \[33, 4\]"),
        (_set(f"{Q0}.lora_A.weight", torch.zeros(5, 32)), MalformedAdapter, "rank contradicts"),
        (_set(f"{Q0}.lora_A.weight", torch.zeros(4)), MalformedAdapter, "does not fit"),
        (
            _set(f"{Q0}.lora_A.weight", torch.zeros(4, 32, dtype=torch.int8)),
            MalformedAdapter,
            "stored as I8",
        ),
        (
            _rename(f"{Q0}.lora_A.weight", "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"),
            MalformedAdapter,
            "llama, 2 layers.*layers.7",
        ),
        (_set("base_model.model.encoder.weight", torch.zeros(1)), MalformedAdapter, "match no module"),
        (_set("base_model.model.model.norm.weight", torch.zeros(7)), MalformedAdapter, "does not fit"),
        (_set(f"{Q0}.bias", torch.zeros(32)), MalformedAdapter, "match no module"),
        (_set(f"{Q0}.lora_B.weight", torch.zeros(0)), MalformedAdapter, "ZeRO-3"),
        (
            _set("base_model.model.model.layers.0.mlp.experts.3.w1.lora_A.weight", torch.zeros(1)),
            MalformedAdapter,
            "experts.3.w1",
        ),
        (_set(f"{Q0}.lora_A.other.weight", torch.zeros(4, 32)), MalformedAdapter, "Two tensors"),
        (_set(f"{Q0}.lora_magnitude_vector", torch.ones(32)), MalformedAdapter, "use_dora is False"),
        (
            _set("base_model.model.layers.0.self_attn.q_proj.lora_A.weight", torch.zeros(4, 32)),
            MalformedAdapter,
            "lacks its lora_B",
        ),
    ],
)
def test_files_that_contradict_config_or_base_are_refused_by_name(change, error, named):
    weights, config, tensors = _plain()
    change(tensors)
    with pytest.raises(error, match=named) as caught:
        _open(weights, config, tensors)
    assert caught.value.hint is None or caught.value.hint.endswith(".")


def test_one_module_under_two_prefixes_is_refused():
    weights, config, tensors = _plain()
    for part in ("lora_A", "lora_B"):
        again = f"base_model.model.layers.0.self_attn.q_proj.{part}.weight"
        tensors[again] = tensors[f"{Q0}.{part}.weight"]
    with pytest.raises(MalformedAdapter, match="the same module"):
        _open(weights, config, tensors)


def test_a_dora_config_without_magnitudes_is_refused():
    weights, config, tensors = _plain()
    with pytest.raises(MalformedAdapter, match="has no lora_magnitude_vector"):
        _open(weights, config | {"use_dora": True}, tensors)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_a_value_that_is_no_number_is_refused_by_tensor_name(value, part):
    weights, config, tensors = _plain()
    tensors[f"{Q0}.{part}.weight"][1, 2] = value
    adapter = _open(weights, config, tensors)
    with pytest.raises(MalformedAdapter, match=f"q_proj.{part}"):
        adapter.delta(Site(0, Role.Q))


def test_a_scale_that_overflows_is_refused():
    weights, config, tensors = _plain()
    tensors[f"{Q0}.lora_B.weight"].fill_(3e38)
    with pytest.raises(MalformedAdapter, match="times its scale"):
        _open(weights, config, tensors).delta(Site(0, Role.Q))


def test_a_rank_far_above_the_weights_own_is_refused():
    weights, config, _ = _plain()
    tensors = {f"{Q0}.lora_A.weight": torch.zeros(200, 32), f"{Q0}.lora_B.weight": torch.zeros(32, 200)}
    with pytest.raises(MalformedAdapter, match="rank 200"):
        _open(weights, config | {"r": 200}, tensors)


def test_an_error_names_at_most_five_strangers():
    weights, config, tensors = _plain()
    tensors |= {f"base_model.model.stranger.{n}.weight": torch.zeros(1) for n in range(9)}
    with pytest.raises(MalformedAdapter, match="and 4 more") as caught:
        _open(weights, config, tensors)
    assert caught.value.message.count("stranger") == 5


def test_too_many_tensors_are_refused_before_anything_is_looked_at():
    weights, config, tensors = _plain()
    with pytest.raises(MalformedAdapter, match="at most 3"):
        _open(weights, config, tensors, max_tensors=3)


def test_an_adapter_of_another_family_is_refused_with_the_source_as_pointer():
    _, config, tensors = _plain("gpt2")
    with pytest.raises(MalformedAdapter, match="match no module of the source base") as caught:
        _open(weights_of(tiny_model("llama")), config, tensors)
    assert caught.value.pointer == "/source"
