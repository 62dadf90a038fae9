"""Pseudo-activations against transformers' own modules on tiny models of every family."""

from __future__ import annotations

import pytest
import torch

from rebase.evidence.embeddings import SharedTokenRows
from rebase.lora.low_rank import Role, Site
from rebase.models.families import FAMILIES
from support.tiny_models import tiny_model, weights_of

IDS = torch.tensor([3, 17, 40, 41, 90])
OTHER_IDS = torch.tensor([5, 6, 7, 80, 2])


class _Recorder:
    """What the model's own modules read and wrote, by name, in one forward pass."""

    def __init__(self, model, names):
        self.read, self.wrote = {}, {}
        self.hooks = [
            model.get_submodule(name).register_forward_hook(self._keep(name), with_kwargs=True)
            for name in names
        ]

    def _keep(self, name):
        def hook(module, args, kwargs, output):
            inputs = args[0] if args else next(iter(kwargs.values()))
            self.read[name] = inputs.detach().reshape(-1, inputs.shape[-1])
            self.wrote[name] = output.detach().reshape(-1, output.shape[-1])

        return hook


def _forward(model_type, ids):
    """Each token alone as a sequence: at layer 0, attention over one position returns its own value."""
    model = tiny_model(model_type)
    if model_type == "gpt2":
        model.transformer.wpe.weight.data.zero_()  # a token's row holds no position
    weights = weights_of(model)
    names = {weights.architecture.get_module_name(Site(0, role)) for role in weights.architecture.roles}
    recorder = _Recorder(model, sorted(names))
    with torch.no_grad():
        model(input_ids=ids[:, None])
    return weights, recorder


def test_nothing_is_read_before_rows_are_asked_for():
    weights = weights_of(tiny_model("llama"))
    paired = SharedTokenRows(weights, weights, IDS, OTHER_IDS)
    assert paired.token_count == 5
    assert len(paired.digest) == 64
    assert weights._reader.reads == []
    paired.rows("source", Site(0, Role.Q), "in")
    assert len(set(weights._reader.reads)) == 2, "the embedding and the layer's norm"


def test_the_digest_tells_tokens_order_sides_and_spread_apart():
    weights = weights_of(tiny_model("llama"))

    def digest(*arguments):
        return SharedTokenRows(weights, weights, *arguments).digest

    assert digest(IDS, OTHER_IDS) == digest(IDS.int(), OTHER_IDS.clone())
    others = [
        (IDS, OTHER_IDS),
        (OTHER_IDS, IDS),
        (IDS, IDS),
        (IDS[:4], OTHER_IDS[:4]),
        (IDS.flip(0), OTHER_IDS.flip(0)),
        (IDS, OTHER_IDS, 3),
    ]
    assert len({digest(*arguments) for arguments in others}) == len(others)


def _rows_of(tensor, weights, role):
    rows = weights.architecture.get_output_rows(Site(0, role))
    return tensor if rows is None else tensor[:, rows]


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_the_first_layer_reads_and_writes_what_the_real_model_does(model_type):
    """A one-token sequence attends to itself only, so o_proj really reads the token's own value heads."""
    weights, recorder = _forward(model_type, IDS)
    paired = SharedTokenRows(weights, weights, IDS, IDS)
    for role in set(weights.architecture.roles) - {Role.GATE, Role.UP, Role.DOWN}:
        site = Site(0, role)
        name = weights.architecture.get_module_name(site)
        assert torch.allclose(paired.rows("source", site, "in"), recorder.read[name], atol=2e-4), site
        if role is not Role.O:
            wanted = _rows_of(recorder.wrote[name], weights, role)
            assert torch.allclose(paired.rows("source", site, "out"), wanted, atol=2e-4), site


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_the_mlp_rows_follow_the_layers_own_norm_weights_and_activation(model_type):
    """Embeddings skip attention here, so the real MLP module is fed with the same normed rows."""
    model = tiny_model(model_type)
    weights = weights_of(model)
    architecture = weights.architecture
    paired = SharedTokenRows(weights, weights, IDS, IDS)
    name = architecture.get_module_name(Site(1, Role.DOWN))
    recorder = _Recorder(model, [name])
    with torch.no_grad():
        model.get_submodule(name.rpartition(".")[0])(paired.rows("target", Site(1, Role.UP), "in"))
    assert torch.allclose(paired.rows("target", Site(1, Role.DOWN), "in"), recorder.read[name], atol=2e-4)


def test_what_writes_the_residual_stream_is_paired_by_the_embeddings_themselves():
    weights = weights_of(tiny_model("llama"))
    paired = SharedTokenRows(weights, weights, IDS, OTHER_IDS)
    for role in (Role.O, Role.DOWN):
        assert torch.equal(paired.rows("source", Site(1, role), "out"), weights.read_embedding_rows(IDS))
        assert torch.equal(
            paired.rows("target", Site(1, role), "out"), weights.read_embedding_rows(OTHER_IDS)
        )


def test_both_sides_have_equally_many_rows_whatever_their_widths():
    source = weights_of(tiny_model("llama"))
    target = weights_of(tiny_model("gpt2", n_embd=48))
    paired = SharedTokenRows(source, target, IDS, OTHER_IDS)
    assert paired.token_count == 5
    for role in (Role.Q, Role.O, Role.UP, Role.DOWN):
        for port in ("in", "out"):
            ours, theirs = (paired.rows(side, Site(0, role), port) for side in ("source", "target"))
            assert ours.shape == (5, source.shape(Site(0, role))[port == "in"])
            assert theirs.shape == (5, target.shape(Site(0, role))[port == "in"])


def test_the_costly_rows_are_fewer_and_spread_over_all_tokens():
    weights = weights_of(tiny_model("llama"))
    ids = torch.arange(3, 96)
    few = SharedTokenRows(weights, weights, ids, ids, inner_rows=4).rows("source", Site(0, Role.DOWN), "in")
    whole = SharedTokenRows(weights, weights, ids, ids).rows("source", Site(0, Role.DOWN), "in")
    assert torch.allclose(few, whole[[0, 31, 61, 92]], atol=1e-6)


def test_each_layer_is_computed_once_and_only_one_layer_is_kept():
    weights = weights_of(tiny_model("llama"))
    reader = weights._reader
    paired = SharedTokenRows(weights, weights, IDS, IDS)
    value = "model.layers.0.self_attn.v_proj.weight"
    paired.rows("source", Site(0, Role.O), "in")
    paired.rows("source", Site(0, Role.Q), "in")
    paired.rows("source", Site(0, Role.O), "in")
    assert reader.reads.count(value) == 1
    paired.rows("source", Site(1, Role.Q), "in")
    paired.rows("source", Site(0, Role.O), "in")
    assert reader.reads.count(value) == 2


def test_unpaired_ids_are_refused():
    weights = weights_of(tiny_model("llama"))
    with pytest.raises(ValueError, match="equal shapes"):
        SharedTokenRows(weights, weights, IDS, IDS[:2])
