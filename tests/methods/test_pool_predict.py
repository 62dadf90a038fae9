"""Prediction from a pool against NumPy on explicit vectors: the primal, which the dual must equal."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rebase.lora.low_rank import LowRank
from rebase.methods.anchor_ridge._regression import (
    compute_loo_errors,
    compute_scale,
    solve_mean,
    solve_pca,
    solve_procrustes,
    solve_ridge,
    solve_topk,
)
from rebase.methods.base import Kernels
from rebase.methods.pool_kernel import combine_updates, gram, site_kernel
from support.synthetic_sites import dense, orthogonal, update

N, D, E = 7, 40, 30
RNG = np.random.default_rng(5)
X, x = RNG.standard_normal((N, D)) + 0.7, RNG.standard_normal(D) + 0.7
Y = RNG.standard_normal((N, E)) - 0.4
centring = pytest.mark.parametrize("center", [True, False])


def _kernels(X=X, x=x, Y=Y):
    return Kernels(*(torch.from_numpy(part) for part in (X @ X.T, X @ x, Y @ Y.T)), self_inner=float(x @ x))


def _primal_ridge(X, Y, x, penalty, center):
    x0, y0 = (X.mean(0), Y.mean(0)) if center else (np.zeros(X.shape[1]), np.zeros(Y.shape[1]))
    W = np.linalg.solve((X - x0).T @ (X - x0) + penalty * np.eye(X.shape[1]), (X - x0).T @ (Y - y0))
    return y0 + (x - x0) @ W


def _same(weights, wanted, Y=Y):
    assert np.linalg.norm(weights.numpy() @ Y - wanted) < 1e-9 * np.linalg.norm(wanted)


def test_the_mean_is_the_mean():
    _same(solve_mean(_kernels()), Y.mean(0))


@centring
@pytest.mark.parametrize("penalty", [1e-3, 1.0, 50.0])
def test_ridge_in_the_dual_is_ridge_on_the_vectors(penalty, center):
    _same(solve_ridge(_kernels(), penalty, center=center), _primal_ridge(X, Y, x, penalty, center))


@centring
def test_pca_is_ridge_on_the_leading_components(center):
    x0 = X.mean(0) if center else np.zeros(D)
    V = np.linalg.svd(X - x0, full_matrices=False)[2][:3].T
    # Scores instead of vectors; the components already are centred with X.
    y0 = Y.mean(0) if center else np.zeros(E)
    S = (X - x0) @ V
    W = np.linalg.solve(S.T @ S + 0.5 * np.eye(3), S.T @ (Y - y0))
    _same(solve_pca(_kernels(), 3, 0.5, center=center), y0 + (x - x0) @ V @ W)


@centring
def test_topk_is_ridge_on_the_nearest_by_cosine_and_nothing_for_the_rest(center):
    near = np.argsort(-(X @ x) / np.linalg.norm(X, axis=1))[:4]
    found = solve_topk(_kernels(), 4, 0.3, center=center)
    _same(found, _primal_ridge(X[near], Y[near], x, 0.3, center))
    assert not found[[i for i in range(N) if i not in near]].any()


@centring
def test_procrustes_is_the_best_orthogonal_map_within_the_span(center):
    x0, y0 = (X.mean(0), Y.mean(0)) if center else (np.zeros(D), np.zeros(E))
    U, S, Vh = np.linalg.svd((X - x0).T @ (Y - y0), full_matrices=False)
    r = np.count_nonzero(S / S[0] > 1e-9)
    _same(solve_procrustes(_kernels(), center=center), y0 + (x - x0) @ U[:, :r] @ Vh[:r])


def test_in_a_linear_world_ridge_is_exact():
    M = RNG.standard_normal((D, E))
    inside = RNG.dirichlet(np.ones(N)) @ X
    _same(solve_ridge(_kernels(x=inside, Y=X @ M), 1e-10), inside @ M, X @ M)


def test_in_a_rotated_world_procrustes_is_exact():
    R = orthogonal(D, 3).numpy()
    inside = RNG.dirichlet(np.ones(N)) @ X
    _same(solve_procrustes(_kernels(x=inside, Y=X @ R)), inside @ R, X @ R)


@centring
def test_the_closed_form_error_of_leaving_one_out_is_that_of_refitting_without_it(center):
    penalties = torch.tensor([1e-2, 1.0, 30.0], dtype=torch.float64)
    found = compute_loo_errors(_kernels(), penalties, center=center)
    for row, penalty in zip(found, penalties.tolist(), strict=True):
        for i in range(N):
            rest = [j for j in range(N) if j != i]
            missed = Y[i] - _primal_ridge(X[rest], Y[rest], X[i], penalty, center)
            assert float(row[i]) == pytest.approx(np.linalg.norm(missed), rel=1e-8)


def test_a_huge_penalty_leaves_the_mean():
    assert torch.allclose(solve_ridge(_kernels(), 1e12), solve_mean(_kernels()), atol=1e-9)
    assert compute_scale(_kernels().K) == pytest.approx(((X - X.mean(0)) ** 2).sum() / N)


def test_kernels_come_from_factors_and_do_not_depend_on_them():
    updates = [update(12, 9, r, seed) for seed, r in enumerate((1, 3, 5))]
    flat = np.stack([dense(u).numpy().ravel() for u in updates])
    K = site_kernel(updates)
    assert np.allclose(K.numpy(), flat @ flat.T, rtol=1e-6)
    turned = [LowRank(-2.0 * u.B, -0.5 * u.A) for u in updates]
    assert torch.allclose(site_kernel(turned), K, rtol=1e-6)
    assert torch.allclose(gram(updates[:1], turned), K[:1], rtol=1e-6)


def test_a_combination_of_updates_is_exact_and_leaves_unused_ones_out():
    updates = [update(12, 9, r, seed) for seed, r in enumerate((1, 3, 5))]
    c = torch.tensor([0.5, 0.0, -2.0], dtype=torch.float64)
    found = combine_updates(updates, c)
    assert found.rank == 6
    assert torch.allclose(dense(found), 0.5 * dense(updates[0]) - 2 * dense(updates[2]), atol=1e-5)
    assert not dense(combine_updates(updates, 0 * c)).any()
