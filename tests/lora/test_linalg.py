"""Factored linear algebra against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rebase.errors import UnsupportedModel
from rebase.lora.linalg import factorize, frobenius, inner, procrustes, thin_svd, truncate
from rebase.lora.low_rank import LowRank
from support.synthetic_sites import dense, gaussian, orthogonal, relative_error, update, weight

SHAPES = [(40, 40), (24, 96), (96, 24), (64, 63)]


def _eye_error(M):
    return float((M.T @ M - torch.eye(M.shape[1])).abs().max())


def _affinity(A, B):
    return float((A.double().T @ B.double()).square().sum()) / A.shape[1]


def _exact(W, k):
    U, S, Vh = np.linalg.svd(W.double().numpy(), full_matrices=False)
    return torch.from_numpy(U[:, :k]), torch.from_numpy(S[:k]), torch.from_numpy(Vh[:k].T.copy())


@settings(max_examples=30, deadline=None)
@given(o=st.integers(1, 24), i=st.integers(1, 24), r=st.integers(1, 30), seed=st.integers(0, 999))
def test_the_thin_svd_is_the_svd_of_the_product(o, i, r, seed):
    delta = update(o, i, r, seed)
    U, S, V = thin_svd(delta)
    assert U.shape[1] == S.numel() == V.shape[1] == min(o, i, r)
    assert relative_error((U * S) @ V.T, dense(delta)) < 1e-5
    wanted = np.linalg.svd(dense(delta).numpy(), compute_uv=False)[: S.numel()]
    assert np.allclose(S.numpy(), wanted, atol=1e-5 * wanted[0])
    assert max(_eye_error(U), _eye_error(V)) < 1e-5


def test_norms_and_inner_products_need_no_dense_update():
    a, b = update(30, 20, 4, 1), update(30, 20, 7, 2)
    assert frobenius(a) == pytest.approx(float(dense(a).norm()), rel=1e-6)
    assert inner(a, b) == pytest.approx(float((dense(a) * dense(b)).sum()), rel=1e-5)
    assert frobenius(LowRank(torch.zeros(3, 1), torch.zeros(1, 3))) == 0.0


@pytest.mark.parametrize("rank", [1, 3, 6, 9])
def test_truncation_is_the_best_of_its_rank_and_says_what_it_lost(rank):
    delta = update(30, 20, 6, 3)
    cut, lost = truncate(delta, rank)
    U, S, Vh = np.linalg.svd(dense(delta).numpy(), full_matrices=False)
    best = (U[:, :rank] * S[:rank]) @ Vh[:rank]
    assert cut.rank == min(rank, 6)
    assert relative_error(dense(cut), torch.from_numpy(best)) < 1e-5
    assert lost == pytest.approx((S[rank:] ** 2).sum() / (S**2).sum(), abs=1e-6)


def test_truncating_nothing_loses_nothing():
    cut, lost = truncate(LowRank(torch.zeros(5, 2), torch.zeros(2, 4)), 1)
    assert lost == 0.0
    assert not dense(cut).any()


@pytest.mark.parametrize("spectrum", ["flat", "realistic"])
@pytest.mark.parametrize("shape", SHAPES)
def test_base_factors_span_what_the_exact_svd_spans(shape, spectrum):
    W = weight(*shape, seed=4, spectrum=spectrum)
    for k in (1, 8, min(shape)):
        found, (U, S, V) = factorize(W, k), _exact(W, k)
        assert min(_affinity(found.U, U), _affinity(found.V, V)) > 0.9999
        assert torch.allclose(found.S.double(), S, rtol=1e-4)
        assert found.energy == pytest.approx(float(S.square().sum() / W.double().square().sum()), abs=1e-5)
        assert max(_eye_error(found.U), _eye_error(found.V)) < 1e-5


def test_base_factors_of_a_flat_spectrum_are_exact_at_the_size_of_a_real_layer():
    W = weight(384, 1200, seed=5, spectrum="flat")
    found, (U, _, V) = factorize(W, 80), _exact(W, 80)
    assert min(_affinity(found.U, U), _affinity(found.V, V)) > 0.9999


def test_single_directions_match_the_exact_svd_once_signs_are_fixed():
    W = weight(96, 64, seed=6)
    found, (U, _, V) = factorize(W, 10), _exact(W, 10)
    signs = torch.sign(U.gather(0, U.abs().argmax(0, keepdim=True)))
    assert relative_error(found.U, U * signs) < 1e-4
    assert relative_error(found.V, V * signs) < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("true_rank", [0, 1, 5])
def test_factors_stay_orthonormal_where_the_weight_is_rank_deficient(shape, true_rank):
    o, i = shape
    W = gaussian(o, true_rank, seed=7) @ gaussian(true_rank, i, seed=8)
    found = factorize(W, min(shape))
    assert found.U.shape == (o, min(shape))
    assert max(_eye_error(found.U), _eye_error(found.V)) < 1e-5
    assert torch.allclose((found.U * found.S) @ found.V.T, W, atol=1e-4)
    assert bool((found.S[true_rank:] < 1e-3).all())


def test_a_wide_range_of_singular_values_keeps_both_sides_orthonormal():
    U, V = orthogonal(60, 9), orthogonal(60, 10)
    W = (U * torch.logspace(0, -7, 60, dtype=torch.float64) @ V.T).float()
    found = factorize(W, 60)
    assert max(_eye_error(found.U), _eye_error(found.V)) < 1e-5


def test_the_largest_entry_of_every_left_vector_is_positive_and_bytes_repeat():
    W = weight(50, 70, seed=11)
    one, two = factorize(W, 20), factorize(W.clone(), 20)
    assert bool((one.U.gather(0, one.U.abs().argmax(0, keepdim=True)) > 0).all())
    assert torch.equal(one.U, two.U)
    assert torch.equal(one.V, two.V)
    flipped = factorize(-W, 20)
    assert torch.allclose(flipped.U, one.U, atol=1e-5)
    assert torch.allclose(flipped.V, -one.V, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_base_weight_that_is_not_finite_is_refused(bad):
    W = weight(12, 8, seed=12)
    W[3, 2] = bad
    with pytest.raises(UnsupportedModel, match="NaN or Inf"):
        factorize(W, 4)


@pytest.mark.parametrize(("p", "q"), [(12, 12), (9, 14), (14, 9)])
def test_procrustes_beats_every_nearby_isometry(p, q):
    X, Y = gaussian(200, p, seed=13), gaussian(200, q, seed=14)
    R = procrustes(X, Y)
    narrow = R if p >= q else R.T
    assert _eye_error(narrow) < 1e-5
    best = float((X @ R * Y).sum())
    for seed in range(20):
        tilt = torch.linalg.qr(torch.eye(p) + 0.1 * gaussian(p, p, seed=100 + seed)).Q
        assert float((X @ (tilt @ R) * Y).sum()) <= best + 1e-3


def test_procrustes_recovers_a_rotation_and_leaves_unreached_directions_at_zero():
    Q = orthogonal(16, 15).float()
    X = gaussian(100, 16, seed=16)
    assert relative_error(procrustes(X, X @ Q), Q) < 1e-5
    few = procrustes(X[:5], X[:5] @ Q)
    assert float(few.square().sum()) == pytest.approx(5.0, abs=1e-3)
    assert relative_error(X[:5] @ few, X[:5] @ Q) < 1e-4


@pytest.mark.parametrize("shape", [(300, 260), (700, 90), (90, 700)])
@pytest.mark.parametrize("falling", [False, True])
def test_a_sum_of_many_updates_is_cut_exactly_too(shape, falling):
    """By Gram matrices above rank 128: the same result as the SVD of the dense update, and the same loss."""
    o, i = shape
    share = torch.logspace(0, -4 if falling else 0, 200)
    wide = LowRank(gaussian(o, 200, seed=1) * share, gaussian(200, i, seed=2))
    cut, lost = truncate(wide, 6)
    W = dense(wide)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    assert cut.rank == 6
    assert relative_error(dense(cut), (U[:, :6] * S[:6]) @ Vh[:6]) < 1e-4
    # Above the smaller side QR is used, whose singular values are handed on in float32.
    assert lost == pytest.approx(float(S[6:].square().sum() / S.square().sum()), abs=1e-7)
    assert float((cut.B.norm(dim=0) / cut.A.norm(dim=1)).log().abs().max()) < 1e-4


def test_a_wide_sum_of_low_rank_is_cut_to_what_there_is():
    few = update(150, 140, 3, seed=4)
    wide = LowRank(torch.cat([few.B] * 50, 1), torch.cat([few.A] * 50, 0))
    cut, lost = truncate(wide, 8)
    assert relative_error(dense(cut), 50 * dense(few)) < 1e-5
    assert lost < 1e-9
    zero, nothing = truncate(wide.scaled(0.0), 8)
    assert not dense(zero).any()
    assert nothing == 0.0
