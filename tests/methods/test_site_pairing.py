"""Layer maps and site pairs between models of unlike depth and family."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.errors import IncompatiblePair
from rebase.lora.low_rank import Role, Site
from rebase.methods.site_pairing import map_layers_proportionally, pair_sites
from support.tiny_models import tiny_model, weights_of


@given(st.integers(1, 130), st.integers(1, 130))
def test_the_layer_map_is_monotone_and_even_at_any_depths(source, target):
    layers = map_layers_proportionally(source, target)
    assert len(layers) == target
    assert list(layers) == sorted(layers)
    assert all(0 <= layer < source for layer in layers)
    counts = Counter(layers).values()
    assert max(counts) - min(counts) <= 1
    if target >= source:
        assert set(layers) == set(range(source))


@given(st.integers(1, 130))
def test_equal_depths_map_layer_to_layer(depth):
    assert map_layers_proportionally(depth, depth) == tuple(range(depth))


def test_a_model_pairs_with_itself_site_by_site():
    weights = weights_of(tiny_model("llama"))
    pairing = pair_sites(weights, weights, weights.sites, layer_scale=True)
    assert [(pair.source, pair.target) for pair in pairing.pairs] == [(s, s) for s in weights.sites]
    assert all(pair.scale == 1.0 and pair.source_shape == pair.target_shape for pair in pairing.pairs)
    assert pairing.dropped == ()
    assert pairing.unused_source_layers == ()


def test_a_deeper_target_shares_updates_and_scales_them_down_when_asked():
    source = weights_of(tiny_model("llama"))
    target = weights_of(tiny_model("qwen3", num_hidden_layers=5))
    pairing = pair_sites(source, target, [Site(0, Role.Q), Site(1, Role.Q)], layer_scale=True)
    assert pairing.layer_map == (0, 0, 1, 1, 1)
    assert [pair.scale for pair in pairing.pairs] == [1 / 2] * 2 + [1 / 3] * 3
    assert pairing.pairs[0].target_shape == (64, 32)
    plain = pair_sites(source, target, [Site(0, Role.Q)], layer_scale=False)
    assert [pair.scale for pair in plain.pairs] == [1.0, 1.0]


def test_a_shallower_target_names_the_source_layers_it_leaves_out():
    source = weights_of(tiny_model("llama", num_hidden_layers=5))
    target = weights_of(tiny_model("llama"))
    pairing = pair_sites(source, target, source.sites, layer_scale=True)
    assert pairing.layer_map == (1, 3)
    assert pairing.unused_source_layers == (0, 2, 4)
    assert {site.layer for site in pairing.dropped} == {0, 2, 4}


def test_roles_that_the_target_lacks_are_dropped():
    source, target = weights_of(tiny_model("llama")), weights_of(tiny_model("gpt2"))
    pairing = pair_sites(source, target, source.sites, layer_scale=True)
    assert pairing.dropped == (Site(0, Role.GATE), Site(1, Role.GATE))
    assert pairing.unused_source_layers == ()


def test_nothing_in_common_is_an_incompatible_pair():
    source, target = weights_of(tiny_model("llama")), weights_of(tiny_model("gpt2"))
    with pytest.raises(IncompatiblePair) as caught:
        pair_sites(source, target, [Site(0, Role.GATE)], layer_scale=True)
    assert "gate_proj" in str(caught.value.hint)
