"""The laws that every method in the registry obeys. A new method joins by its registry line alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rebase.errors import IncompatiblePair
from rebase.lora.low_rank import LowRank, Role
from rebase.methods.params import PARAMS_BY_NAME, parse_params
from rebase.methods.registry import METHODS, get_method
from support.synthetic_sites import (
    dense,
    evidence,
    gaussian,
    orthogonal,
    pair_of,
    relative_error,
    site_pair,
    update,
    weight,
)

# Every reading of a method that obeys the same laws: parameters, and whether shapes may differ.
VARIANTS = [
    ({"name": "copy"}, False),
    ({"name": "copy", "pad": True}, True),
    ({"name": "cross_lora", "alignment": "anchored"}, True),
    ({"name": "cross_lora", "alignment": "anchored", "norm": "preserve"}, True),
    ({"name": "cross_lora", "alignment": "projection"}, False),
    ({"name": "cross_lora", "alignment": "index"}, True),
    ({"name": "cross_lora", "orthogonalize": True}, True),
    ({"name": "cross_lora", "orthogonalize": True, "alignment": "projection", "norm": "preserve"}, False),
    ({"name": "cross_lora", "orthogonalize": True, "alignment": "index"}, True),
    ({"name": "cross_lora", "sweep": (3, 7, 400)}, True),
    ({"name": "difference"}, False),
    ({"name": "linear", "ridge": 1e-8}, False),
    ({"name": "linear", "side": "input", "ridge": 1e-8}, False),
    ({"name": "weight_average"}, False),
    ({"name": "ties", "density": 1.0}, False),
    ({"name": "prolora", "energy": 1.0}, False),
    ({"name": "prolora", "energy": 0.8, "perp": "complement"}, False),
    ({"name": "prolora", "energy": 1.0, "perp": "residual"}, False),
    ({"name": "cross_lora", "alignment": "activations"}, True),
    ({"name": "activation", "ridge": 1e-9}, True),
    ({"name": "activation", "ridge": 1e-9, "norm": "preserve"}, True),
    ({"name": "cast"}, True),
    ({"name": "geometric"}, True),
    ({"name": "geometric", "lock_rounds": 0}, True),
    ({"name": "anchor_ridge", "predictor": "mean"}, True),
    ({"name": "anchor_ridge", "penalty": 1e-8}, True),
    ({"name": "anchor_ridge", "predictor": "topk_ridge", "penalty": 1e-8}, True),
    ({"name": "anchor_ridge", "predictor": "per_tensor_ridge", "penalty": 1e-8}, True),
    ({"name": "anchor_ridge", "predictor": "per_tensor_pca", "penalty": 1e-8, "count": 256}, True),
    ({"name": "anchor_ridge", "predictor": "procrustes"}, True),
]
# These add a move of the base itself, or a pool's mean, so that neither a scaled nor a zero update scales the
# result.
# Trained through both models, so there is nothing to hold to a law at one constructed site.
TRAINED = {"distill"}
AFFINE = {"difference", "weight_average", "ties", "anchor_ridge"}
PROPORTIONAL = [variant for variant in VARIANTS if variant[0]["name"] not in AFFINE]
each_variant = pytest.mark.parametrize(
    ("raw", "crosses"), VARIANTS, ids=lambda v: "-".join(map(str, v.values())) if isinstance(v, dict) else ""
)
each_proportional_variant = pytest.mark.parametrize(
    ("raw", "crosses"),
    PROPORTIONAL,
    ids=lambda v: "-".join(map(str, v.values())) if isinstance(v, dict) else "",
)
each_exact_variant = pytest.mark.parametrize(
    ("raw", "crosses"),
    # An energy below 1 leaves the mixed parts behind, and the mean of a pool does not look, by design.
    [v for v in VARIANTS if v[0].get("energy", 1.0) == 1.0 and v[0].get("predictor") != "mean"],
    ids=lambda v: "-".join(map(str, v.values())) if isinstance(v, dict) else "",
)
EVIDENCE_OF = {
    "embedding_rows": "embeddings",
    "cached_by_site": "embeddings",
    "weight": "weights",
    "anchor_updates": "anchors",
    "trained_maps": "maps",
    **dict.fromkeys(("moments", "held_out_rows", "rows", "cached_by_hook"), "activations"),
}
each_role = pytest.mark.parametrize("role", [Role.Q, Role.DOWN])
RANK = 4


def _run(raw, site, delta, seen, pair=None):
    params = parse_params(raw)
    method = get_method(params.name)
    state = method.prepare(params, pair or pair_of(site, seen=seen, delta=delta))
    return method.transfer_site(params, state, site, delta, seen)


def _promised(raw, rank):
    """The rank that a method promises for an update of this rank."""
    return (parse_params(raw).rank or rank) if raw["name"] in AFFINE else rank


def _case(crosses, role, seed=0):
    source = (24, 32)
    target = (28, 20) if crosses else source
    W_s, W_t = weight(*source, seed=seed + 1), weight(*target, seed=seed + 2)
    seen = evidence(W_s, W_t, anchors=160, seed=seed + 3)
    return site_pair(source, target, role), update(*source, RANK, seed + 4), seen


def test_every_registered_method_is_covered_here_and_published():
    assert {raw["name"] for raw, _ in VARIANTS} == set(METHODS) - TRAINED
    assert set(METHODS) == set(PARAMS_BY_NAME) - {"auto"}


@each_exact_variant
@each_role
def test_identical_bases_and_full_rank_give_the_identical_update(raw, crosses, role):
    """Where W is not square, its factors span less than the whole space; the update lies in their span."""
    W = weight(32, 32, seed=1)
    rows = gaussian(200, 32, seed=2)
    shared = {(side, port): rows for side in ("source", "target") for port in ("in", "out")}
    delta = update(32, 32, RANK, 3)
    pool = tuple((u, u) for u in (delta, *(update(32, 32, 3, seed) for seed in (10, 20, 30))))
    carried = _run(raw, site_pair((32, 32), (32, 32), role), delta, evidence(W, W, 200, 4, shared, pool))
    share = 0.5 if raw["name"] == "weight_average" else 1.0  # the mean of a tuned base and the base
    assert relative_error(dense(carried.delta), share * dense(delta)) < 1e-4


@each_variant
@each_role
def test_the_result_is_finite_fits_the_target_and_keeps_its_rank(raw, crosses, role):
    site, delta, seen = _case(crosses, role)
    carried = _run(raw, site, delta, seen)
    assert carried.delta.shape == site.target_shape
    assert carried.delta.rank <= _promised(raw, RANK)
    assert bool(torch.isfinite(carried.delta.B).all() and torch.isfinite(carried.delta.A).all())
    assert all(math.isfinite(value) for value in carried.measurements.values())
    assert carried.delta.B.dtype == carried.delta.A.dtype == torch.float32


@each_variant
@each_role
def test_the_same_inputs_give_the_same_bytes(raw, crosses, role):
    one, two = (_run(raw, *_case(crosses, role)) for _ in range(2))
    assert torch.equal(one.delta.B, two.delta.B)
    assert torch.equal(one.delta.A, two.delta.A)
    assert one.measurements == two.measurements
    assert one.flags == two.flags


@each_proportional_variant
@settings(max_examples=10, deadline=None)
@given(factor=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_a_scaled_update_gives_a_scaled_result(raw, crosses, factor, seed):
    site, delta, seen = _case(crosses, Role.Q, seed)
    once, scaled = _run(raw, site, delta, seen), _run(raw, site, delta.scaled(factor), seen)
    assert relative_error(dense(scaled.delta), factor * dense(once.delta)) < 1e-4


@each_variant
@settings(max_examples=10, deadline=None)
@given(rank=st.integers(1, 12), seed=st.integers(0, 99))
def test_how_the_update_is_factored_does_not_matter(raw, crosses, rank, seed):
    site, _, seen = _case(crosses, Role.O, seed)
    delta = update(*site.source_shape, rank, seed)
    G = orthogonal(rank, seed) @ torch.diag(torch.linspace(0.3, 3.0, rank, dtype=torch.float64))
    other = LowRank((delta.B.double() @ G).float(), (torch.linalg.inv(G) @ delta.A.double()).float())
    one, two = _run(raw, site, delta, seen), _run(raw, site, other, seen)
    assert relative_error(dense(two.delta), dense(one.delta)) < 1e-4


@each_variant
@settings(max_examples=15, deadline=None)
@given(
    shapes=st.tuples(*(st.integers(2, 40),) * 4),
    r=st.integers(1, 8),
    k=st.integers(1, 50),
    n=st.integers(8, 90),
)
def test_any_shapes_ranks_and_anchor_counts_give_a_finite_result(raw, crosses, shapes, r, k, n):
    source = shapes[:2]
    target = shapes[2:] if crosses else source
    seen = evidence(weight(*source, seed=1), weight(*target, seed=2), n, seed=3)
    raw = raw | ({"rank": k} if raw["name"] == "cross_lora" else {})
    carried = _run(raw, site_pair(source, target), update(*source, r, 4), seen)
    assert carried.delta.shape == target
    assert carried.delta.rank <= _promised(raw, r)
    assert bool(torch.isfinite(dense(carried.delta)).all())
    assert all(math.isfinite(value) for value in carried.measurements.values())


@each_proportional_variant
def test_an_update_of_zero_stays_zero(raw, crosses):
    site, delta, seen = _case(crosses, Role.Q)
    carried = _run(raw, site, delta.scaled(0.0), seen)
    assert not dense(carried.delta).any()
    assert all(math.isfinite(value) for value in carried.measurements.values())


class _Untouchable:
    """Evidence that must not be asked."""

    def __getattr__(self, name):
        raise AssertionError(f"prepare or a refusal read evidence: {name}")


@each_variant
def test_an_incompatible_pair_is_refused_in_prepare(raw, crosses):
    params = parse_params(raw)
    with pytest.raises(IncompatiblePair):
        get_method(params.name).prepare(params, pair_of())
    misfit = pair_of(site_pair((8, 8), (8, 8)), site_pair((8, 8), (8, 12), Role.K))
    if crosses:
        get_method(params.name).prepare(params, misfit)
        return
    with pytest.raises(IncompatiblePair, match=r"0\.k_proj \(8×8 → 8×12\)"):
        get_method(params.name).prepare(params, misfit)


@each_variant
def test_a_method_asks_only_for_the_evidence_that_it_declares(raw, crosses):
    params = parse_params(raw)
    site, delta, seen = _case(crosses, Role.Q)
    needs = {str(need) for need in get_method(params.name).needs(params)}
    asked = set()

    class Watched(_Untouchable):
        def __getattr__(self, name):
            asked.add(EVIDENCE_OF.get(name, name))
            return getattr(seen, name)

    _run(raw, site, delta, Watched(), pair_of(site, seen=seen, delta=delta))
    assert asked == needs
