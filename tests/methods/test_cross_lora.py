"""Cross-LoRA against a float64 reference written from its formula, and in worlds with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rebase.lora.low_rank import LowRank, Role
from rebase.methods._alignment import HELD_OUT_EVERY
from rebase.methods.cross_lora.method import CrossLora
from rebase.methods.cross_lora.params import CrossLoraParams
from support.synthetic_sites import (
    Evidence,
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

METHOD = CrossLora()
SHAPE_PAIRS = [((40, 40), (40, 40)), ((48, 20), (64, 28)), ((20, 48), (28, 64)), ((12, 40), (8, 56))]
READERS = [Role.Q, Role.K, Role.V, Role.GATE, Role.UP]
WRITERS = [Role.O, Role.DOWN]


def _svd(W, k):
    """Exact SVD with the largest entry of every left vector positive."""
    U, S, Vh = np.linalg.svd(W.double().numpy(), full_matrices=False)
    k = min(k, S.size)
    U, S, V = U[:, :k], S[:k], Vh[:k].T
    signs = np.sign(U[np.abs(U).argmax(0), np.arange(k)])
    return U * signs, S, V * signs


def _polar(X, Y):
    P, _, Qh = np.linalg.svd(X.T @ Y, full_matrices=False)
    return P @ Qh


def _fit_rows(X):
    return X.double().numpy()[np.arange(X.shape[0]) % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]


def _reference(alignment, role, k, D, seen):
    """ΔW_t from the formulas, dense, float64."""
    D = D.numpy()
    (U_s, _, V_s), (U_t, _, V_t) = (_svd(seen.weight(side), k) for side in ("source", "target"))
    if alignment == "projection":
        return U_t @ U_t.T @ D @ V_t @ V_t.T
    C = U_s.T @ D @ V_s
    if alignment == "index":
        Q_out = Q_in = np.eye(U_s.shape[1], U_t.shape[1])
    else:
        X_s, X_t = (_fit_rows(seen.embedding_rows(side, "in")) for side in ("source", "target"))
        if role in WRITERS:
            Y_s, Y_t = (_fit_rows(seen.embedding_rows(side, "out")) for side in ("source", "target"))
        else:
            Y_s = X_s @ seen.weight("source").double().numpy().T
            Y_t = X_t @ seen.weight("target").double().numpy().T
        Q_in, Q_out = _polar(X_s @ V_s, X_t @ V_t), _polar(Y_s @ U_s, Y_t @ U_t)
    return U_t @ Q_out.T @ C @ Q_in @ V_t.T


def _carry(params, site, delta, seen):
    return METHOD.transfer_site(params, METHOD.prepare(params, pair_of(site)), site, delta, seen)


@pytest.mark.parametrize("role", [Role.Q, Role.DOWN])
@pytest.mark.parametrize("spectrum", ["flat", "realistic"])
@pytest.mark.parametrize("k", [5, 400])
@pytest.mark.parametrize("shapes", SHAPE_PAIRS)
@pytest.mark.parametrize("alignment", ["anchored", "projection", "index"])
def test_the_result_agrees_with_the_formula_in_float64(alignment, shapes, k, spectrum, role):
    source, target = shapes
    if alignment == "projection":
        target = source
    seen = evidence(weight(*source, 1, spectrum), weight(*target, 3, spectrum), anchors=800, seed=5)
    delta = update(*source, 4, 7)
    params = CrossLoraParams(rank=k, alignment=alignment)
    carried = _carry(params, site_pair(source, target, role), delta, seen)
    wanted = _reference(alignment, role, k, dense(delta), seen)
    assert relative_error(dense(carried.delta), torch.from_numpy(wanted)) < 1e-4


@pytest.mark.parametrize("role", [*READERS, *WRITERS])
@pytest.mark.parametrize("k", [12, 64])
def test_anchors_recover_the_update_of_a_rotated_base_where_index_order_fails(role, k):
    """Target = source in rotated coordinates, its directions of equal strength in another order."""
    o, i = 40, 32
    R_out, R_in = orthogonal(o, 1), orthogonal(i, 2)
    W_s = weight(o, i, seed=3)
    W_t = (R_out @ W_s.double() @ R_in.T).float()
    X, Y = gaussian(400, i, seed=5).double(), gaussian(400, o, seed=6).double()
    rows = {
        ("source", "in"): X.float(),
        ("target", "in"): (X @ R_in.T).float(),
        ("source", "out"): Y.float(),
        ("target", "out"): (Y @ R_out.T).float(),
    }
    seen = Evidence({"source": W_s, "target": W_t}, rows)
    delta = update(o, i, 4, 7)
    U, _, V = (torch.from_numpy(np.ascontiguousarray(part)) for part in _svd(W_s, k))
    projected = R_out @ U @ U.T @ dense(delta) @ V @ V.T @ R_in.T
    site = site_pair((o, i), (o, i), role)

    anchored = _carry(CrossLoraParams(rank=k), site, delta, seen)
    assert relative_error(dense(anchored.delta), projected) < 1e-3
    assert anchored.flags == ()
    assert anchored.measurements["anchor_residual_in"] < 0.01
    assert anchored.measurements["anchor_residual_out"] < 0.01

    index = _carry(CrossLoraParams(rank=k, alignment="index"), site, delta, seen)
    assert relative_error(dense(index.delta), projected) > 0.5
    assert "index_alignment" in index.flags


def test_anchors_recover_an_update_across_widths():
    """A target that embeds the source isometrically: wider on both sides, same function."""
    E_out, E_in = orthogonal(56, 1)[:, :40], orthogonal(48, 2)[:, :32]
    W_s = weight(40, 32, seed=3)
    W_t = (E_out @ W_s.double() @ E_in.T).float()
    X = gaussian(500, 32, seed=4).double()
    seen = evidence(W_s, W_t, 500, 5, {("source", "in"): X.float(), ("target", "in"): (X @ E_in.T).float()})
    delta = update(40, 32, 4, 6)
    U, _, V = (torch.from_numpy(np.ascontiguousarray(part)) for part in _svd(W_s, 20))
    carried = _carry(CrossLoraParams(rank=20), site_pair((40, 32), (56, 48), Role.UP), delta, seen)
    wanted = E_out @ U @ U.T @ dense(delta) @ V @ V.T @ E_in.T
    assert relative_error(dense(carried.delta), wanted) < 1e-3
    assert carried.measurements["norm_ratio"] ** 2 == pytest.approx(
        carried.measurements["energy_kept"], rel=1e-3
    )


def test_unrelated_rows_are_flagged_because_a_shuffle_does_as_well():
    seen = evidence(weight(40, 32, 1), weight(56, 48, 3), anchors=800, seed=5)
    carried = _carry(CrossLoraParams(rank=20), site_pair((40, 32), (56, 48)), update(40, 32, 4, 7), seen)
    assert "anchors_uninformative" in carried.flags
    assert "few_anchors" not in carried.flags
    for port in ("in", "out"):
        residual, null = (carried.measurements[f"anchor_{name}_{port}"] for name in ("residual", "null"))
        assert residual == pytest.approx(null, abs=0.03)


def test_too_few_anchors_are_flagged_and_reach_only_their_own_span():
    X = gaussian(16, 32, seed=1)
    rows = {("source", "in"): X, ("target", "in"): X}
    W = weight(40, 32, seed=2)
    seen = evidence(W, W, 16, 3, rows)
    carried = _carry(CrossLoraParams(rank=32), site_pair((40, 32), (40, 32)), update(40, 32, 4, 4), seen)
    assert "few_anchors" in carried.flags
    assert carried.measurements["anchor_tokens"] == 14
    assert carried.measurements["anchor_reached_in"] == pytest.approx(14 / 32, abs=1e-3)


def test_preserving_the_norm_changes_the_size_and_nothing_else():
    seen = evidence(weight(40, 32, 1), weight(56, 48, 3), anchors=800, seed=5)
    site, delta = site_pair((40, 32), (56, 48)), update(40, 32, 4, 7)
    kept = _carry(CrossLoraParams(rank=10), site, delta, seen)
    preserved = _carry(CrossLoraParams(rank=10, norm="preserve"), site, delta, seen)
    assert preserved.measurements["norm_ratio"] == pytest.approx(1.0, rel=1e-5)
    ratio = kept.measurements["norm_ratio"]
    assert relative_error(ratio * dense(preserved.delta), dense(kept.delta)) < 1e-5


def test_the_energies_say_what_the_factors_hold_and_what_survives():
    W_s, W_t = weight(40, 32, 1), weight(40, 32, 3)
    seen = evidence(W_s, W_t, 800, 5)
    delta = update(40, 32, 4, 7)
    measured = _carry(CrossLoraParams(rank=8), site_pair((40, 32), (40, 32)), delta, seen).measurements
    (U_s, S_s, V_s), (U_t, _, _) = _svd(W_s, 8), _svd(W_t, 8)
    assert measured["energy_source"] == pytest.approx(
        (S_s**2).sum() / float(W_s.double().square().sum()), abs=1e-4
    )
    inside = U_s.T @ dense(delta).numpy() @ V_s
    assert measured["energy_kept"] == pytest.approx(
        (inside**2).sum() / float(dense(delta).square().sum()), abs=1e-5
    )
    assert measured["subspace_overlap"] == pytest.approx(((U_s.T @ U_t) ** 2).sum() / 8, abs=1e-4)


def test_subspace_overlap_is_reported_only_where_widths_agree():
    seen = evidence(weight(40, 32, 1), weight(40, 48, 3), 800, 5)
    carried = _carry(CrossLoraParams(rank=8), site_pair((40, 32), (40, 48)), update(40, 32, 4, 7), seen)
    assert "subspace_overlap" in carried.measurements
    assert "subspace_overlap_in" not in carried.measurements


def test_joint_sign_flips_of_a_base_do_not_change_the_index_result():
    """−W has the same directions with signs that numerics choose; the fixed gauge undoes that."""
    W_s, W_t = weight(40, 32, 1), weight(40, 32, 3)
    site, delta = site_pair((40, 32), (40, 32)), update(40, 32, 4, 7)
    params = CrossLoraParams(rank=8, alignment="index")
    one = _carry(params, site, delta, evidence(W_s, W_t, 8, 5))
    two = _carry(params, site, delta, evidence(-W_s, -W_t, 8, 5))
    assert relative_error(dense(two.delta), dense(one.delta)) < 1e-3


def test_only_the_anchored_reading_asks_for_embeddings():
    assert {str(need) for need in METHOD.needs(CrossLoraParams())} == {"factors", "embeddings"}
    for alignment in ("index", "projection"):
        assert {str(need) for need in METHOD.needs(CrossLoraParams(alignment=alignment))} == {"factors"}


def test_nothing_dense_is_built_from_the_update():
    """A 200,000-wide output would need 16 GB as a dense update; as factors it is small."""
    o, i, k = 200_000, 20_000, 4
    U = torch.linalg.qr(gaussian(o, k, seed=1)).Q
    V = torch.linalg.qr(gaussian(i, k, seed=2)).Q

    class Given:
        def factors(self, side, rank):
            from rebase.lora.low_rank import Factors

            return Factors(U, torch.ones(k), V, 0.5)

    delta = LowRank(gaussian(o, 2, seed=3), gaussian(2, i, seed=4))
    params = CrossLoraParams(rank=k, alignment="projection")
    carried = METHOD.transfer_site(params, None, site_pair((o, i), (o, i)), delta, Given())
    assert carried.delta.shape == (o, i)
