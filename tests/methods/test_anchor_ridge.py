"""Prediction from a pool, against NumPy on whole updates: fits, choices, what it says about itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rebase.errors import IncompatiblePair
from rebase.lora.low_rank import LowRank, Role, Site
from rebase.methods.anchor_ridge._fit import PENALTIES, compute_leverage, fit_predictor
from rebase.methods.anchor_ridge.method import AnchorRidge
from rebase.methods.anchor_ridge.params import AnchorRidgeParams
from rebase.methods.base import BasePairInfo, SitePair
from support.synthetic_sites import (
    Evidence,
    Pool,
    anchor_updates,
    dense,
    orthogonal,
    pair_of,
    relative_error,
    site_pair,
    update,
)

SHAPES = {Role.Q: ((12, 10), (16, 14)), Role.K: ((6, 10), (8, 14)), Role.DOWN: ((10, 20), (14, 24))}
SITES = tuple(SitePair(Site(0, role), Site(0, role), *shapes) for role, shapes in SHAPES.items())
N = 6


def mixed(updates, weights):
    """Σ c_i ΔW_i as factors."""
    return LowRank(
        torch.cat([c * u.B for c, u in zip(weights, updates, strict=True)], 1),
        torch.cat([u.A for u in updates], 0),
    )


def mapped(u, R, L):
    """L ΔW R: what the same task's update would be on a base whose coordinates are turned."""
    return LowRank((L @ u.B.double()).float(), (u.A.double() @ R).float())


def world(kind, inside=True, seed=0, count=N):
    """Pools on three sites. `linear`: another width on the target, each target update a fixed linear image of
    its source update; `random`: unrelated. The adapter is a mixture of the anchors when `inside`."""
    share = torch.linspace(0.1, 0.3, count)
    share = share / share.sum()
    updates, moved, wanted = {}, {}, {}
    for number, site in enumerate(SITES):
        pairs = anchor_updates(site.source_shape, site.target_shape, seed + 1000 * number, count)
        sources = [source for source, _ in pairs]
        if kind == "linear":
            (o_s, i_s), (o_t, i_t) = site.source_shape, site.target_shape
            L, R = orthogonal(o_t, 7)[:, :o_s], orthogonal(i_t, 8)[:i_s]
            pairs = [(source, mapped(source, R, L)) for source in sources]
        updates[site] = pairs
        own = mixed(sources, share) if inside else update(*site.source_shape, 4, seed + 7777 + number)
        moved[site] = own
        wanted[site] = mapped(own, R, L) if kind == "linear" else None
    return Pool(updates, moved, tuple("abcabcabc"[:count])), moved, wanted


def predict(params, pool, moved):
    pair = BasePairInfo({}, {}, tuple(pool.updates), pool)
    state = AnchorRidge().prepare(params, pair)
    carried = {
        site: AnchorRidge().transfer_site(
            params, state, site, moved[site], Evidence({}, {}, tuple(pool.updates[site]))
        )
        for site in pool.updates
    }
    return state, carried


def vectors(pool, side):
    return np.stack(
        [
            np.concatenate([dense(pool.updates[site][n][side]).numpy().ravel() for site in pool.updates])
            for n in range(len(pool.domains))
        ]
    )


@pytest.mark.parametrize("predictor", ["global_ridge", "per_tensor_ridge", "per_tensor_pca", "procrustes"])
def test_where_the_bases_differ_by_a_turn_an_adapter_among_the_anchors_comes_over_exactly(predictor):
    """The constructed world of which the answer is known: updates that are turned, and nothing else."""
    pool, moved, wanted = world("linear")
    params = AnchorRidgeParams(predictor=predictor, penalty=1e-9, count=N, rank=24)
    state, carried = predict(params, pool, moved)
    for site in SITES:
        assert relative_error(dense(carried[site].delta), dense(wanted[site])) < 1e-3
    assert state.measurements["span_share"] > 0.999


def test_what_no_anchor_knows_does_not_come_over_and_the_result_says_so():
    pool, moved, wanted = world("linear", inside=False)
    state, carried = predict(AnchorRidgeParams(penalty=1e-9, rank=24), pool, moved)
    assert state.measurements["span_share"] < 0.5
    assert all(relative_error(dense(carried[s].delta), dense(wanted[s])) > 0.5 for s in SITES)


@pytest.mark.parametrize("center", [True, False])
def test_global_ridge_is_ridge_on_whole_adapters_in_numpy(center):
    pool, moved, _ = world("random", inside=False)
    X, Y = vectors(pool, 0), vectors(pool, 1)
    x = np.concatenate([dense(moved[site]).numpy().ravel() for site in SITES])
    x0, y0 = (X.mean(0), Y.mean(0)) if center else (0 * x, 0 * Y[0])
    Xc = X - x0
    penalty = 0.3 * np.trace(Xc @ Xc.T) / N
    wanted = y0 + (x - x0) @ np.linalg.solve(Xc.T @ Xc + penalty * np.eye(x.size), Xc.T @ (Y - y0))
    _, carried = predict(AnchorRidgeParams(penalty=0.3, rank=24, center=center), pool, moved)
    found = np.concatenate([dense(carried[site].delta).numpy().ravel() for site in SITES])
    assert np.linalg.norm(found - wanted) < 1e-4 * np.linalg.norm(wanted)


def test_the_penalty_is_the_one_that_predicts_left_out_anchors_best():
    pool, moved, _ = world("random", inside=False)
    chosen, _ = predict(AnchorRidgeParams(), pool, moved)
    errors = {
        penalty: predict(AnchorRidgeParams(penalty=penalty), pool, moved)[0].measurements["loo_error"]
        for penalty in PENALTIES
    }
    best = min(errors, key=lambda penalty: errors[penalty])
    assert chosen.measurements["penalty"] == best
    assert {row["penalty"]: row["loo_error"] for row in chosen.curve} == pytest.approx(errors, rel=1e-9)


def test_the_error_of_left_out_anchors_is_what_a_pool_without_them_makes_of_them():
    pool, moved, _ = world("linear", inside=False)
    Y = vectors(pool, 1)
    for predictor, count in (("topk_ridge", 3), ("procrustes", None), ("mean", None)):
        params = AnchorRidgeParams(predictor=predictor, penalty=0.1, count=count, rank=24)
        state, _ = predict(params, pool, moved)
        for i in (0, N - 1):
            rest = [n for n in range(N) if n != i]
            less = Pool(
                {s: [pool.updates[s][n] for n in rest] for s in SITES},
                {s: pool.updates[s][i][0] for s in SITES},
                "abcde",
            )
            # λ is in units of the whole pool's kernel.
            unit = np.trace(np.cov(vectors(pool, 0).T, bias=True)) / np.trace(
                np.cov(vectors(less, 0).T, bias=True)
            )
            again = params.model_copy(update={"penalty": 0.1 * unit})
            _, carried = predict(again, less, less.moved)
            found = np.concatenate([dense(carried[s].delta).numpy().ravel() for s in SITES])
            error = np.linalg.norm(found - Y[i]) / np.linalg.norm(Y[i])
            assert state.anchor_weights[i].loo_error == pytest.approx(error, rel=1e-3)


def test_unrelated_pools_predict_no_better_than_nothing_and_that_is_what_they_report():
    pool, moved, _ = world("random", inside=False)
    state, _ = predict(AnchorRidgeParams(), pool, moved)
    assert state.measurements["loo_error"] > 0.95
    assert state.measurements["cosine_to_mean"] > 0.9


def test_domains_are_counted_and_one_alone_has_no_entropy():
    pool, moved, _ = world("random")
    state, _ = predict(AnchorRidgeParams(), pool, moved)
    assert state.measurements["domain_entropy"] == pytest.approx(math.log(3))
    narrow = Pool(pool.updates, pool.moved, "aaaaaa")
    assert predict(AnchorRidgeParams(), narrow, moved)[0].measurements["domain_entropy"] == 0.0


def test_leverages_are_the_diagonal_of_the_smoother():
    pool, moved, _ = world("random")
    X = vectors(pool, 0)
    Xc = X - X.mean(0)
    K = Xc @ Xc.T
    wanted = np.diag(K @ np.linalg.inv(K + 0.2 * np.trace(K) / N * np.eye(N))) + 1 / N
    state, _ = predict(AnchorRidgeParams(penalty=0.2), pool, moved)
    assert np.allclose([row.leverage for row in state.anchor_weights], wanted, rtol=1e-5)


def test_a_source_layer_that_feeds_two_target_layers_counts_once():
    pool, moved, _ = world("random", count=4)
    site = SITES[0]
    twin = SitePair(site.source, Site(1, Role.Q), site.source_shape, site.target_shape, 0.5)
    sources = [source for source, _ in pool.updates[site]]
    targets = [target for _, target in anchor_updates(site.source_shape, site.target_shape, 5, 4)]
    updates = {site: pool.updates[site], twin: list(zip(sources, targets, strict=True))}
    both = Pool(updates, {site: moved[site], twin: moved[site]}, "abcd")
    alone = Pool({site: pool.updates[site]}, {site: moved[site]}, "abcd")
    params = AnchorRidgeParams(penalty=0.5)
    one, _ = predict(params, alone, {site: moved[site]})
    two, _ = predict(params, both, {site: moved[site], twin: moved[site]})
    assert [row.weight for row in one.anchor_weights] == pytest.approx(
        [row.weight for row in two.anchor_weights]
    )


def test_raw_factors_are_combined_as_the_paper_reads_them_and_need_one_rank():
    pool, moved, _ = world("random")
    params = AnchorRidgeParams(space="factors", predictor="mean", rank=24)
    same_rank = {site: update(*site.source_shape, 3, 5) for site in SITES}
    equal = Pool(pool.updates, same_rank, pool.domains)
    _, carried = predict(params, equal, same_rank)
    site = SITES[0]
    targets = [target for _, target in pool.updates[site]]
    B, A = (sum(getattr(t, part).double() for t in targets) / N for part in "BA")
    assert relative_error(dense(carried[site].delta), B @ A) < 1e-5
    with pytest.raises(IncompatiblePair, match="equal ranks"):
        predict(params, pool, moved)


@pytest.mark.parametrize("predictor", ["mean", "global_ridge", "topk_ridge", "per_tensor_pca", "procrustes"])
@pytest.mark.parametrize("count", [2, 3])
def test_the_smallest_pools_and_equal_anchors_give_finite_results(predictor, count):
    for pool, moved, _ in (world("random", count=count), world("linear", count=count)):
        twins = Pool({s: [pool.updates[s][0]] * count for s in SITES}, moved, "ab"[:1] * count)
        for one in (pool, twins):
            state, carried = predict(AnchorRidgeParams(predictor=predictor), one, moved)
            assert all(math.isfinite(value) for value in state.measurements.values())
            assert all(bool(torch.isfinite(dense(c.delta)).all()) for c in carried.values())
        mean = dense(pool.updates[SITES[0]][0][1])
        assert relative_error(dense(carried[SITES[0]].delta), mean) < 1e-4


def test_without_a_pool_or_with_one_anchor_it_is_refused_with_the_field():
    site = site_pair((8, 8), (8, 8))
    with pytest.raises(IncompatiblePair, match="There is no anchor pool") as refused:
        AnchorRidge().prepare(AnchorRidgeParams(), BasePairInfo({}, {}, (site,)))
    assert refused.value.pointer == "/method/pool"
    with pytest.raises(IncompatiblePair, match="1 usable anchor"):
        AnchorRidge().prepare(AnchorRidgeParams(), pair_of(site, domains="a"))


def test_a_huge_penalty_weighs_all_anchors_alike():
    pool, _, _ = world("random")
    pair = BasePairInfo({}, {}, SITES, pool)
    state = AnchorRidge().prepare(AnchorRidgeParams(penalty=1e9), pair)
    assert [row.weight for row in state.anchor_weights] == pytest.approx([1 / N] * N, abs=1e-6)
    assert state.measurements["cosine_to_mean"] == pytest.approx(1.0)


def test_leverage_of_one_kernel_lies_between_its_mean_share_and_one():
    pool, _, _ = world("random")
    kernels = pool.kernels(SITES[0], "delta")
    for penalty in (1e-6, 1.0, 1e6):
        held = compute_leverage(AnchorRidgeParams(), kernels, penalty)
        assert bool(((held >= 1 / N - 1e-9) & (held <= 1.0)).all())
    assert fit_predictor(AnchorRidgeParams(), kernels).weights.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("predictor", ["topk_ridge", "per_tensor_pca"])
def test_a_count_that_is_not_given_may_be_all_of_the_pool(predictor):
    """A fold lacks one anchor; the prediction itself must not."""
    pool, moved, wanted = world("linear", count=4)
    _, carried = predict(AnchorRidgeParams(predictor=predictor, penalty=1e-9, rank=24), pool, moved)
    assert all(relative_error(dense(carried[s].delta), dense(wanted[s])) < 1e-3 for s in SITES)


@pytest.mark.parametrize("predictor", ["per_tensor_ridge", "per_tensor_pca", "global_ridge"])
def test_the_cosine_to_the_mean_is_that_of_the_predictions(predictor):
    pool, moved, _ = world("random")
    params = AnchorRidgeParams(predictor=predictor, penalty=1e-3, rank=24)
    state, carried = predict(params, pool, moved)
    found = np.concatenate([dense(carried[s].delta).numpy().ravel() for s in SITES])
    mean = vectors(pool, 1).mean(0)
    cosine = found @ mean / np.linalg.norm(found) / np.linalg.norm(mean)
    assert state.measurements["cosine_to_mean"] == pytest.approx(cosine, abs=1e-5)


def test_equal_anchors_leave_no_rounding_to_fit():
    pool, moved, _ = world("random", count=3)
    twins = {s: [(pool.updates[s][0][0], target) for _, target in pool.updates[s]] for s in SITES}
    params = AnchorRidgeParams(predictor="per_tensor_ridge", penalty=1e-9)
    state, _ = predict(params, Pool(twins, moved, "abc"), moved)
    assert [row.weight for row in state.anchor_weights] == pytest.approx([1 / 3] * 3, abs=1e-6)
