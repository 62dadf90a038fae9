"""Base weights by role, against the modules of the live transformers model."""

from __future__ import annotations

import pytest
import torch

from rebase.errors import UnsupportedModel
from rebase.lora.low_rank import Role, Site
from rebase.models.families import FAMILIES
from rebase.models.weights import ModelWeights
from support.tiny_models import FolderReader, open_base, save_base, tiny_model, weights_of


def _state(model):
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def _captured_input(module, run):
    seen = []
    handle = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach()))
    run()
    handle.remove()
    return seen[0]


def _captured_output(module, run):
    seen = []
    handle = module.register_forward_hook(lambda _module, _args, out: seen.append(out.detach()))
    run()
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_weight_and_bias_of_all_roles_reproduce_the_modules_output(model_type):
    model = tiny_model(model_type)
    weights = weights_of(model)
    architecture = weights.architecture
    ids = torch.tensor([[5, 7, 11, 13]])
    for site in weights.sites:
        module = model.get_submodule(architecture.get_module_name(site))
        x = torch.randn(6, architecture.in_features(site.role))
        y = module(x).detach()
        rows = architecture.get_output_rows(site)
        expected = y if rows is None else y[:, rows]
        bias = weights.bias(site)
        found = x @ weights.weight(site).T + (0 if bias is None else bias)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert weights.weight(site).shape == weights.shape(site)
    assert ids.shape == (1, 4)


@pytest.mark.parametrize("model_type", sorted(set(FAMILIES) - {"gpt2"}))
def test_embedding_rows_and_the_norm_give_what_the_first_attention_reads(model_type):
    """GPT-2 adds position embeddings before its first norm, so its chain is not this one."""
    model = tiny_model(model_type)
    weights = weights_of(model)
    ids = torch.tensor([5, 7, 11, 95])
    first = model.get_submodule(weights.architecture.get_module_name(Site(0, Role.Q)))
    seen = _captured_input(first, lambda: model(ids[None]))
    found = weights.load_norm(0, "attention")(weights.read_embedding_rows(ids))
    torch.testing.assert_close(found, seen[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_norm_before_the_mlp_is_the_models_own(model_type):
    model = tiny_model(model_type)
    weights = weights_of(model)
    architecture = weights.architecture
    norm_module = model.get_submodule(
        f"{architecture.root}{architecture.get_layer_name(1)}.{architecture.family.mlp_norm}"
    )
    x = torch.randn(3, 5, architecture.hidden)
    expected = norm_module(x).detach()
    torch.testing.assert_close(weights.load_norm(1, "mlp")(x), expected, rtol=1e-5, atol=1e-5)
    up = model.get_submodule(architecture.get_module_name(Site(1, Role.UP)))
    ids = torch.tensor([[5, 7, 11]])
    read = _captured_input(up, lambda: model(ids))
    normed = _captured_output(norm_module, lambda: model(ids))
    torch.testing.assert_close(read.reshape(-1), normed.reshape(-1))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_mlp_can_be_rebuilt_from_roles_and_activation(model_type):
    model = tiny_model(model_type)
    weights = weights_of(model)
    architecture = weights.architecture
    mlp = model.get_submodule(f"{architecture.root}{architecture.get_layer_name(0)}.mlp")
    x = torch.randn(4, architecture.hidden)

    def linear(role, values):
        bias = weights.bias(Site(0, role))
        return values @ weights.weight(Site(0, role)).T + (0 if bias is None else bias)

    hidden = architecture.activate(linear(Role.GATE if architecture.is_gated else Role.UP, x))
    if architecture.is_gated:
        hidden = hidden * linear(Role.UP, x)
    torch.testing.assert_close(linear(Role.DOWN, hidden), mlp(x).detach(), rtol=1e-4, atol=1e-4)


def test_a_saved_folder_reads_like_the_live_model(tmp_path):
    model = tiny_model("gemma2", seed=3)
    folder = save_base(tmp_path, "gemma2", seed=3)
    site = Site(1, Role.DOWN)
    assert torch.equal(open_base(folder).weight(site), weights_of(model).weight(site))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox", "gemma3_text"])
def test_checkpoints_with_another_known_prefix_are_read(model_type):
    model = tiny_model(model_type)
    family = FAMILIES[model_type]
    site = Site(1, Role.V)
    expected = weights_of(model).weight(site)
    for prefix in family.prefixes:
        renamed = {
            prefix + name.removeprefix(family.root): tensor
            for name, tensor in _state(model).items()
            if name.startswith(family.root)
        }
        weights = ModelWeights(model.config.to_dict(), FolderReader(renamed))
        assert torch.equal(weights.weight(site), expected)
        assert all(name in renamed for name in weights.list_tensor_names(site))


def test_only_the_rows_of_the_role_are_read_from_a_fused_tensor():
    class Counting(FolderReader):
        rows = 0

        def read_rows(self, name, start, stop):
            self.rows += stop - start
            return super().read_rows(name, start, stop)

    model = tiny_model("phi3")
    reader = Counting(_state(model))
    weights = ModelWeights(model.config.to_dict(), reader)
    assert reader.reads == []
    weights.weight(Site(0, Role.K))
    assert reader.rows == weights.shape(Site(0, Role.K))[0]


def test_embedding_rows_come_in_the_order_asked_for_with_repeats():
    weights = weights_of(tiny_model("llama", vocab_size=9000))
    ids = torch.tensor([8999, 3, 4097, 3])
    rows = weights.read_embedding_rows(ids)
    assert torch.equal(rows[1], rows[3])
    assert torch.equal(rows[0], weights.read_embedding_rows(torch.tensor([8999]))[0])
    assert weights.read_embedding_rows(torch.tensor([], dtype=torch.long)).shape == (0, 32)


def test_a_token_without_an_embedding_row_is_refused():
    with pytest.raises(UnsupportedModel, match="token id 96"):
        weights_of(tiny_model("llama")).read_embedding_rows(torch.tensor([96]))


def test_half_precision_weights_come_as_float32():
    model = tiny_model("qwen2").to(torch.bfloat16)
    assert weights_of(model).weight(Site(0, Role.Q)).dtype == torch.float32
    assert weights_of(model).bias(Site(0, Role.Q)).dtype == torch.float32
    assert weights_of(model).bias(Site(0, Role.O)) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("model.layers.1.mlp.up_proj.weight"), "model.layers.1.mlp.up_proj.weight"),
        (lambda state: state.pop("model.embed_tokens.weight"), "embed_tokens"),
        (
            lambda state: state.update({"model.layers.0.mlp.up_proj.weight": torch.zeros(3, 3)}),
            "up_proj.weight has shape",
        ),
        (
            lambda state: state.update(
                {"model.layers.0.self_attn.q_proj.weight": torch.zeros(32, 32, dtype=torch.int8)}
            ),
            "stored as I8",
        ),
        (lambda state: state.update({"model.embed_tokens.weight": torch.zeros(96)}), "two dimensions"),
        (lambda state: state.pop("model.layers.1.input_layernorm.weight"), "input_layernorm"),
    ],
)
def test_weights_that_do_not_fit_their_config_are_refused_by_tensor_name(change, named):
    model = tiny_model("llama")
    state = _state(model)
    change(state)
    with pytest.raises(UnsupportedModel, match=named):
        ModelWeights(model.config.to_dict(), FolderReader(state))


def test_sites_outside_the_model_are_not_had():
    weights = weights_of(tiny_model("gpt2"))
    assert weights.has_site(Site(1, Role.UP))
    assert not weights.has_site(Site(1, Role.GATE))
    assert not weights.has_site(Site(2, Role.UP))


def test_an_unknown_activation_is_refused_when_it_is_used():
    weights = weights_of(tiny_model("llama"))
    odd = ModelWeights({**weights.config, "hidden_act": "tanhshrink"}, weights._reader)
    with pytest.raises(UnsupportedModel, match="tanhshrink"):
        odd.architecture.activate(torch.zeros(1))
