"""The weight-space methods against NumPy in float64, written from the formulas and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from rebase.methods.params import parse_params
from rebase.methods.registry import get_method
from support.synthetic_sites import dense, evidence, pair_of, site_pair, update, weight

SHAPES = [(24, 24), (20, 44), (48, 18)]  # square, wide as down_proj, tall as up_proj
worlds = pytest.mark.parametrize(
    ("shape", "spectrum"), [(s, k) for s in SHAPES for k in ("flat", "realistic")]
)


def _world(shape, spectrum, **method):
    W_s, W_t = weight(*shape, seed=11, spectrum=spectrum), weight(*shape, seed=22, spectrum=spectrum)
    delta = update(*shape, 4, 33)
    params = parse_params(method)
    chosen, site = get_method(params.name), site_pair(shape, shape)
    state = chosen.prepare(params, pair_of(site))
    carried = chosen.transfer_site(params, state, site, delta, evidence(W_s, W_t, 8, 44))
    return W_s.double().numpy(), W_t.double().numpy(), dense(delta).numpy(), carried


def _close(carried, wanted):
    found = dense(carried.delta).numpy()
    assert np.linalg.norm(found - wanted) <= 1e-4 * np.linalg.norm(wanted)


def _best(matrix, rank):
    U, S, Vh = np.linalg.svd(matrix, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank]


@worlds
@pytest.mark.parametrize("gamma", [1.0, -0.5])
def test_difference_adds_the_bases_own_move(shape, spectrum, gamma):
    W_s, W_t, D, carried = _world(shape, spectrum, name="difference", gamma=gamma)
    _close(carried, gamma * (W_t - W_s) + D)
    assert carried.measurements["lost_energy"] == pytest.approx(0.0, abs=1e-5)
    assert carried.measurements["base_norm"] == pytest.approx(
        abs(gamma) * np.linalg.norm(W_t - W_s), rel=1e-4
    )


@worlds
def test_a_dense_result_is_cut_to_its_best_approximation_and_the_loss_is_told(shape, spectrum):
    W_s, W_t, D, carried = _world(shape, spectrum, name="difference", rank=6)
    whole = W_t - W_s + D
    kept = _best(whole, 6)
    assert carried.delta.rank == 6
    _close(carried, kept)
    lost = 1 - (np.linalg.norm(kept) / np.linalg.norm(whole)) ** 2
    assert carried.measurements["lost_energy"] == pytest.approx(lost, abs=1e-5)
    skill = float((kept * D).sum() / (D * D).sum())
    assert carried.measurements["skill_kept"] == pytest.approx(skill, abs=1e-3)


@worlds
def test_weight_average_is_the_mean_of_tuned_source_and_target(shape, spectrum):
    W_s, W_t, D, carried = _world(shape, spectrum, name="weight_average")
    _close(carried, (W_s + D + W_t) / 2 - W_t)


@worlds
@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties_trims_elects_signs_and_averages_those_that_agree(shape, spectrum, density):
    W_s, W_t, D, carried = _world(shape, spectrum, name="ties", density=density)
    wanted = np.zeros(shape)
    trimmed = []
    for T in (D, W_s - W_t):
        order = np.argsort(-np.abs(T), axis=None)[: int(np.ceil(density * T.size))]
        mask = np.zeros(T.size, dtype=bool)
        mask[order] = True
        trimmed.append(np.where(mask.reshape(shape), T, 0.0))
    for place in np.ndindex(*shape):
        values = [T[place] for T in trimmed if T[place] != 0.0]
        sign = np.sign(sum(values))
        agreeing = [value for value in values if np.sign(value) == sign]
        wanted[place] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    _close(carried, wanted)


@worlds
@pytest.mark.parametrize("ridge", [1e-3, 0.1])
@pytest.mark.parametrize("side", ["output", "input"])
def test_linear_applies_the_ridge_map_between_the_weights(shape, spectrum, ridge, side):
    W_s, W_t, D, carried = _world(shape, spectrum, name="linear", ridge=ridge, side=side)
    if side == "input":  # the paper writes weights as d_in × d_out
        W_s, W_t, D = W_s.T, W_t.T, D.T
    G = W_s @ W_s.T
    P = W_t @ W_s.T @ np.linalg.inv(G + ridge * np.trace(G) / len(G) * np.eye(len(G)))
    _close(carried, P @ D if side == "output" else (P @ D).T)
    assert carried.delta.rank == 4


@worlds
@pytest.mark.parametrize("perp", ["complement", "residual"])
@pytest.mark.parametrize("energy", [0.6, 0.95])
def test_prolora_moves_inside_and_outside_parts_apart(shape, spectrum, perp, energy):
    W_s, W_t, D, carried = _world(shape, spectrum, name="prolora", perp=perp, energy=energy, truncate=False)
    projectors = []
    for W in (W_s, W_t):
        U, S, Vh = np.linalg.svd(W, full_matrices=False)
        k = int(np.argmax(np.cumsum(S**2) / np.sum(S**2) >= energy)) + 1
        projectors.append((U[:, :k] @ U[:, :k].T, Vh[:k].T @ Vh[:k]))
    (Us, Vs), (Ut, Vt) = projectors
    I_o, I_i = np.eye(shape[0]), np.eye(shape[1])
    inside = Us @ D @ Vs
    outside = (I_o - Us) @ D @ (I_i - Vs) if perp == "complement" else D - inside
    wanted = Ut @ inside @ Vt + (I_o - Ut) @ outside @ (I_i - Vt)
    _close(carried, wanted)

    _, _, _, cut = _world(shape, spectrum, name="prolora", perp=perp, energy=energy)
    assert cut.delta.rank == 4
    _close(cut, _best(wanted, 4))


def test_prolora_says_when_the_directions_computed_hold_less_than_asked():
    *_, short = _world((24, 24), "flat", name="prolora", rank=3)
    assert short.flags == ("energy_short",)
    *_, whole = _world((24, 24), "flat", name="prolora")
    assert whole.flags == ()
