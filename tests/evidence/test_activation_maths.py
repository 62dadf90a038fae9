"""Similarity of layers, maps between layers and closed-form maps of sites, against NumPy and known worlds."""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rebase.evidence.cka import (
    LayerSimilarity,
    biased_cka,
    cka,
    cka_from_batches,
    compute_coverage,
    drop_outliers,
    find_monotone_map,
    hsic1,
)
from rebase.lora.low_rank import LowRank
from rebase.methods.activation_maps import (
    Moments,
    PairedRows,
    apply_maps,
    fit_input_map,
    fit_output_map,
    input_r2,
    output_r2,
)
from support.synthetic_sites import dense, gaussian, orthogonal, relative_error, update


def test_the_biased_estimator_is_fooled_by_independent_gaussians_and_ours_is_not():
    """The case of the paper's anchors: 65 rows, wide models."""
    pairs = [(gaussian(65, 2048, seed=n), gaussian(65, 2048, seed=100 + n)) for n in range(20)]
    assert min(biased_cka(X, Y) for X, Y in pairs) > 0.95
    assert abs(np.mean([cka(X, Y) for X, Y in pairs])) < 0.02
    assert max(abs(cka(X, Y)) for X, Y in pairs) < 0.1


def test_turning_and_scaling_the_rows_changes_nothing():
    X = gaussian(80, 24, seed=1)
    Y = 3.0 * X.double() @ orthogonal(24, 2)
    assert cka(X, Y) == pytest.approx(1.0, abs=1e-9)
    assert biased_cka(X, Y) == pytest.approx(1.0, abs=1e-9)


def test_hsic_is_its_definition_over_quadruples_of_rows():
    """HSIC₁ is the mean over ordered quadruples of different rows of k_ij l_ij + k_ij l_qr − 2 k_ij l_iq."""
    n = 6
    K, L = ((rows @ rows.T).double() for rows in (gaussian(n, 3, seed=1), gaussian(n, 2, seed=2)))
    from itertools import permutations

    terms = [
        float(K[i, j] * L[i, j] + K[i, j] * L[q, r] - 2 * K[i, j] * L[i, q])
        for i, j, q, r in permutations(range(n), 4)
    ]
    assert float(hsic1(K, L)) == pytest.approx(np.mean(terms), rel=1e-9)


def test_batches_estimate_what_all_rows_together_do():
    X = gaussian(2048, 16, seed=3)
    Y = torch.cat([X[:, :8], gaussian(2048, 8, seed=4)], 1)
    whole = cka(X, Y)
    batched = cka_from_batches(zip(X.split(64), Y.split(64), strict=True))
    assert batched == pytest.approx(whole, abs=0.02)
    assert 0.2 < whole < 0.9


def test_the_matrix_over_layers_holds_each_pairs_own_similarity():
    source = [gaussian(256, 12, seed=n) for n in range(3)]
    target = [source[1], gaussian(256, 20, seed=9)]
    seen = LayerSimilarity(3, 2)
    for start in range(0, 256, 64):
        seen.add([rows[start : start + 64] for rows in source], [rows[start : start + 64] for rows in target])
    matrix = seen.compute_matrix()
    for s in range(3):
        for t in range(2):
            pairs = zip(source[s].split(64), target[t].split(64), strict=True)
            assert float(matrix[s, t]) == pytest.approx(cka_from_batches(pairs), abs=1e-9)
    assert float(matrix[1, 0]) == pytest.approx(1.0)


def test_a_massive_dimension_is_taken_out_before_models_are_compared():
    X, Y = gaussian(200, 30, seed=1), gaussian(200, 30, seed=2)
    shared = 1000.0 * gaussian(200, 1, seed=3)
    X[:, :1] += shared
    Y[:, 4:5] += shared
    assert cka(X, Y) > 0.9
    assert abs(cka(drop_outliers(X), drop_outliers(Y))) < 0.05
    assert drop_outliers(gaussian(200, 30, seed=1)).shape == (200, 30)


@settings(max_examples=60, deadline=None)
@given(sources=st.integers(1, 6), targets=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_the_layer_map_is_the_best_of_all_ordered_ones(sources, targets, seed):
    similarity = torch.rand(sources, targets, generator=torch.Generator().manual_seed(seed))
    found = find_monotone_map(similarity)
    score = sum(float(similarity[s, t]) for t, s in enumerate(found))
    best = max(
        sum(float(similarity[s, t]) for t, s in enumerate(way))
        for way in combinations_with_replacement(range(sources), targets)
    )
    assert len(found) == targets
    assert list(found) == sorted(found)
    assert score == pytest.approx(best)


def test_equal_layers_are_found_again_whatever_the_depths():
    similarity = torch.full((6, 3), 0.1)
    for target, source in enumerate((0, 3, 5)):
        similarity[source, target] = 0.9
    assert find_monotone_map(similarity) == (0, 3, 5)
    assert find_monotone_map(similarity.T) == (0, 0, 0, 1, 1, 2)
    assert compute_coverage(similarity) == 1.0
    assert compute_coverage(similarity.T) == 0.5
    with pytest.raises(ValueError, match="finite"):
        find_monotone_map(torch.tensor([[float("nan")]]))


def _moments(source, target):
    found = Moments.zeros(source.shape[1], target.shape[1])
    for start in range(0, source.shape[0], 50):
        found.add(source[start : start + 50], target[start : start + 50])
    return found


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
def test_maps_are_ridge_regression_in_numpy(ridge):
    X_s, X_t = gaussian(300, 14, seed=1), gaussian(300, 10, seed=2)
    X_s[:, :5] += X_t[:, :5]
    found = _moments(X_s, X_t)
    xs, xt = X_s.double().numpy(), X_t.double().numpy()
    lam_t, lam_s = (ridge * np.trace(x.T @ x) / x.shape[1] for x in (xt, xs))
    wanted_in = np.linalg.solve(xt.T @ xt + lam_t * np.eye(10), xt.T @ xs).T
    wanted_out = np.linalg.solve(xs.T @ xs + lam_s * np.eye(14), xs.T @ xt).T
    assert relative_error(fit_input_map(found, ridge), torch.from_numpy(wanted_in)) < 1e-4
    assert relative_error(fit_output_map(found, ridge), torch.from_numpy(wanted_out)) < 1e-4


def test_an_update_moves_exactly_onto_a_base_whose_coordinates_are_turned():
    """x_t = R x_s and y_t = Q y_s: the right update on the target is Q ΔW Rᵀ."""
    R, Q = orthogonal(16, 1), orthogonal(12, 2)
    X, Y = gaussian(400, 16, seed=3), gaussian(400, 12, seed=4)
    inputs, outputs = _moments(X, X.double() @ R.T), _moments(Y, Y.double() @ Q.T)
    delta = update(12, 16, 3, seed=5)
    M_in, M_out = fit_input_map(inputs, 1e-9), fit_output_map(outputs, 1e-9)
    moved = apply_maps(delta, M_in, M_out)
    assert moved.rank == 3
    assert relative_error(dense(moved), Q @ dense(delta) @ R.T) < 1e-4
    assert input_r2(delta, M_in, PairedRows(X, X.double() @ R.T)).r2 == pytest.approx(1.0, abs=1e-5)
    assert output_r2(delta.B, M_out, PairedRows(Y, Y.double() @ Q.T)).r2 == pytest.approx(1.0, abs=1e-5)


def _of(A):
    """An update that hands on what A reads as it is."""
    return LowRank(torch.eye(A.shape[0]), A)


def test_what_an_adapter_reads_and_writes_is_judged_on_rows_that_were_not_fitted():
    X_s, noise = gaussian(900, 10, seed=1), gaussian(900, 10, seed=2)
    X_t = torch.cat([X_s[:, :5], noise[:, 5:]], 1)  # half of what the source reads is not there
    fitted, held_out = _moments(X_s[:600], X_t[:600]), PairedRows(X_s[600:], X_t[600:])
    M_in, M_out = fit_input_map(fitted, 1e-6), fit_output_map(fitted, 1e-6)
    knows, misses = torch.eye(10)[:2], torch.eye(10)[6:8]
    assert input_r2(_of(knows), M_in, held_out).r2 > 0.99
    assert input_r2(_of(misses), M_in, held_out).r2 < 0.05
    xs, xt = X_s[600:].double(), X_t[600:].double()
    A = gaussian(3, 10, seed=7).double()
    direct = 1 - float((A @ (xs.T - M_in @ xt.T)).square().sum() / (A @ xs.T).square().sum())
    assert input_r2(_of(A), M_in, held_out).r2 == pytest.approx(direct, abs=1e-5)
    B = gaussian(10, 3, seed=8).double()
    P = torch.linalg.qr(M_out @ B).Q.T
    direct = 1 - float((P @ (xt.T - M_out @ xs.T)).square().sum() / (P @ xt.T).square().sum())
    assert output_r2(B, M_out, held_out).r2 == pytest.approx(direct, abs=1e-5)


@pytest.mark.parametrize("outputs", [2, 10])
def test_what_an_adapter_reads_does_not_depend_on_how_it_is_factored(outputs):
    X_s, noise = gaussian(900, 10, seed=1), gaussian(900, 10, seed=2)
    X_t = torch.cat([X_s[:, :5], noise[:, 5:]], 1)
    M_in, held_out = fit_input_map(_moments(X_s[:600], X_t[:600]), 1e-6), PairedRows(X_s[600:], X_t[600:])
    delta, G = update(outputs, 10, 3, seed=5), gaussian(3, 3, seed=6)
    other = LowRank(delta.B @ torch.linalg.inv(G), G @ delta.A)
    assert input_r2(other, M_in, held_out).r2 == pytest.approx(input_r2(delta, M_in, held_out).r2, abs=1e-5)
    W, xs, xt = dense(delta).double(), X_s[600:].double(), X_t[600:].double()
    direct = 1 - float((W @ (xs.T - M_in @ xt.T)).square().sum() / (W @ xs.T).square().sum())
    assert input_r2(delta, M_in, held_out).r2 == pytest.approx(direct, abs=1e-9)


def test_what_an_adapter_reads_and_makes_nothing_of_does_not_count():
    X_s, noise = gaussian(900, 10, seed=1), gaussian(900, 10, seed=2)
    X_t = torch.cat([X_s[:, :5], noise[:, 5:]], 1)
    M_in, held_out = fit_input_map(_moments(X_s[:600], X_t[:600]), 1e-6), PairedRows(X_s[600:], X_t[600:])
    A, B = torch.eye(10)[[0, 7]], torch.tensor([[1.0, 0.0], [2.0, 0.0]])  # the second row is not known
    assert input_r2(LowRank(B, A), M_in, held_out).r2 > 0.99
    assert np.isnan(input_r2(LowRank(0.0 * B, A), M_in, held_out).centered)


def test_an_adapter_padded_with_zeros_writes_no_other_directions():
    """As one that was written here for a rank that not every site has, and is moved on."""
    X_s, noise = gaussian(900, 10, seed=1), gaussian(900, 10, seed=2)
    X_t = torch.cat([X_s[:, :5], noise[:, 5:]], 1)
    M_out, held_out = fit_output_map(_moments(X_s[:600], X_t[:600]), 1e-6), PairedRows(X_s[600:], X_t[600:])
    B = torch.cat([torch.eye(10)[:, :2], torch.zeros(10, 6)], 1)
    assert output_r2(B, M_out, held_out).r2 == pytest.approx(
        output_r2(B[:, :2], M_out, held_out).r2, abs=1e-9
    )
    assert np.isnan(output_r2(0.0 * B, M_out, held_out).centered)


def test_what_every_token_shares_is_no_knowledge_of_any():
    """Unrelated rows around a large common mean: a map of means alone explains nearly all of their power."""
    X_s, X_t = (gaussian(900, 10, seed=seed) + 5.0 for seed in (1, 2))
    fitted, held_out = _moments(X_s[:600], X_t[:600]), PairedRows(X_s[600:], X_t[600:])
    M_in, M_out = fit_input_map(fitted, 1e-6), fit_output_map(fitted, 1e-6)
    one = torch.eye(10)
    for found in (input_r2(_of(one), M_in, held_out), output_r2(one, M_out, held_out)):
        assert found.r2 > 0.9
        assert found.centered < 0.0  # the offset itself is met with noise, so the mean alone does better
    ours, theirs = X_s[600:].double().numpy(), (X_t[600:].double() @ M_in.T).numpy()
    direct = 1 - ((ours - theirs) ** 2).sum() / ((ours - ours.mean(0)) ** 2).sum()
    assert input_r2(_of(one), M_in, held_out).centered == pytest.approx(direct, abs=1e-9)


def test_of_rows_that_do_not_differ_nothing_is_told():
    rows = torch.ones(8, 10)
    found = input_r2(_of(torch.eye(10)), torch.eye(10), PairedRows(rows, rows))
    assert found.r2 == 1.0
    assert np.isnan(found.centered)


def test_fewer_rows_than_directions_still_give_a_map():
    X_s, X_t = gaussian(4, 12, seed=1), gaussian(4, 9, seed=2)
    found = fit_input_map(_moments(X_s, X_t), 1e-18)
    assert bool(torch.isfinite(found).all())
    assert relative_error(X_t.double() @ found.T, X_s) < 1e-3


def test_sums_of_two_texts_are_those_of_both_together():
    X_s, X_t = gaussian(100, 6, seed=1), gaussian(100, 5, seed=2)
    one, both = _moments(X_s[:50], X_t[:50]) + _moments(X_s[50:], X_t[50:]), _moments(X_s, X_t)
    assert one.rows == both.rows == 100
    assert torch.allclose(one.cross, both.cross)
