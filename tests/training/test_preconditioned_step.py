"""One preconditioned step and the line search behind it, against NumPy and problems whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rebase.training.preconditioned_step import GradientMoments, search_length, solve_step
from support.synthetic_sites import dense, gaussian, relative_error


def _slopes(o=10, i=14, n=300, seed=1):
    """Correlated inputs and gradients, so that preconditioning matters."""
    X = gaussian(n, i, seed=seed) @ gaussian(i, i, seed=seed + 1)
    G = gaussian(n, o, seed=seed + 2) @ gaussian(o, o, seed=seed + 3) + X[:, :o]
    found = GradientMoments.zeros(o, i)
    for start in range(0, n, 70):
        found.add(X[start : start + 70], G[start : start + 70])
    return found, X.double().numpy(), G.double().numpy()


def _damped(gram, ridge):
    return gram + ridge * np.trace(gram) / len(gram) * np.eye(len(gram))


def _power(gram, exponent):
    values, vectors = np.linalg.eigh(gram)
    return (vectors * values**exponent) @ vectors.T


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
def test_of_full_rank_it_is_the_ridge_solution_in_numpy(ridge):
    found, X, G = _slopes()
    wanted = -np.linalg.inv(_damped(G.T @ G, ridge)) @ (G.T @ X) @ np.linalg.inv(_damped(X.T @ X, ridge))
    assert relative_error(dense(solve_step(found, 10, ridge)), torch.from_numpy(wanted)) < 1e-4


def test_cut_to_a_rank_it_is_the_nearest_in_what_the_site_then_writes():
    """The metric is ‖K^½ (·) C^½‖; Eckart and Young's answer, with symmetric roots."""
    found, X, G = _slopes(seed=5)
    C, K = _damped(X.T @ X, 0.1), _damped(G.T @ G, 0.1)
    whole = -np.linalg.inv(K) @ (G.T @ X) @ np.linalg.inv(C)
    U, S, Vt = np.linalg.svd(_power(K, 0.5) @ whole @ _power(C, 0.5))
    wanted = _power(K, -0.5) @ (U[:, :3] * S[:3]) @ Vt[:3] @ _power(C, -0.5)
    assert relative_error(dense(solve_step(found, 3, 0.1)), torch.from_numpy(wanted)) < 1e-4


def test_it_points_where_the_regression_is_and_a_line_search_gets_there():
    """y = W x with loss ½‖y − y*‖² and errors alike in all directions: one step is the regression."""
    X, W = gaussian(4000, 12, seed=1) @ gaussian(12, 12, seed=4), gaussian(7, 12, seed=2)
    turn = torch.linalg.qr(gaussian(12, 12, seed=3)).Q[:7]
    white = torch.linalg.cholesky(X.T @ X / len(X))
    truth = W - turn @ torch.linalg.inv(white)  # so the errors' own covariance is the identity
    found = GradientMoments.zeros(7, 12)
    found.add(X, X @ (W - truth).T)
    update = solve_step(found, 7, 1e-9)

    def loss(length):
        return float((X @ (W + length * dense(update).float() - truth).T).square().mean())

    line = search_length(loss, len(X) / 3.0)
    assert line.loss < 1e-2 * loss(0.0)


def test_a_site_of_which_nothing_is_wanted_is_left_alone():
    found = GradientMoments.zeros(5, 6)
    found.add(gaussian(20, 6, seed=1), torch.zeros(20, 5))
    update = solve_step(found, 2, 0.1)
    assert update.shape == (5, 6)
    assert not bool(dense(update).any())


def test_gradients_of_any_size_give_the_same_direction():
    """Gradients of a mean over many tokens are tiny; their squares must not vanish."""
    X, G = gaussian(100, 6, seed=1), gaussian(100, 5, seed=2)
    one, tiny = GradientMoments.zeros(5, 6), GradientMoments.zeros(5, 6)
    one.add(X, G)
    tiny.add(X, 2.0**-50 * G)
    ours, theirs = (dense(solve_step(sums, 2, 0.1)) for sums in (one, tiny))
    assert relative_error(theirs / theirs.norm(), ours / ours.norm()) < 1e-5


@settings(max_examples=80, deadline=None)
@given(lowest=st.floats(1e-3, 1e3), depth=st.floats(0.1, 10.0), start=st.floats(1e-2, 1e2))
def test_the_bottom_of_a_valley_is_found_from_far_away(lowest, depth, start):
    def loss(length):
        return depth * ((length - lowest) ** 2 / lowest**2 - 1.0)

    found = search_length(loss, start, max_evaluations=40)
    assert found.loss <= -0.8 * depth
    assert found.loss == loss(found.best_length)
    assert found.evaluations[0] == (start, loss(start)) or found.evaluations[0][0] == 0.0


def test_where_every_length_is_worse_it_stays():
    found = search_length(lambda length: 1.0 + length, 3.0)
    assert found.best_length == 0.0
    assert found.loss == 1.0
    assert len(found.evaluations) <= 13


def test_an_exploding_loss_is_no_better_than_none():
    found = search_length(lambda length: math.nan if length > 0.1 else 1.0 - length, 64.0, max_evaluations=20)
    assert 0.0 < found.best_length <= 0.1
