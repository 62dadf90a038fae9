"""Cross-LoRA's `orthogonalize` and `sweep`: against NumPy in float64, and what they promise beyond it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from rebase.lora.linalg import factorize
from rebase.lora.low_rank import LowRank, Role
from rebase.methods.cross_lora._decouple import decouple, recouple
from rebase.methods.cross_lora._ranks import truncate_factors
from rebase.methods.cross_lora.method import CrossLora
from rebase.methods.cross_lora.params import CrossLoraParams
from rebase.methods.params import parse_params
from support.formulas import SiteProblem, cross_lora
from support.synthetic_sites import (
    Evidence,
    dense,
    evidence,
    orthogonal,
    pair_of,
    relative_error,
    site_pair,
    update,
    weight,
)

METHOD = CrossLora()
SHAPE_PAIRS = [((40, 40), (40, 40)), ((48, 20), (64, 28)), ((20, 48), (28, 64))]


def _carry(params, site, delta, seen):
    return METHOD.transfer_site(params, METHOD.prepare(params, pair_of(site)), site, delta, seen)


def _world(source, target, r=4):
    seen = evidence(weight(*source, 1), weight(*target, 3), anchors=800, seed=5)
    return site_pair(source, target), update(*source, r, 7), seen


@pytest.mark.parametrize("k", [9, 400])
@pytest.mark.parametrize("shapes", SHAPE_PAIRS)
@pytest.mark.parametrize("alignment", ["anchored", "projection", "index"])
def test_orthogonalized_results_agree_with_the_formula_in_float64(alignment, shapes, k):
    source, target = shapes if alignment != "projection" else (shapes[0], shapes[0])
    site, delta, seen = _world(source, target)
    options = {"rank": k, "alignment": alignment, "orthogonalize": True}
    carried = _carry(CrossLoraParams(**options), site, delta, seen)
    W_s, W_t = (seen.weight(side).double().numpy() for side in ("source", "target"))
    X_s, X_t = (seen.embedding_rows(side, "in").double().numpy() for side in ("source", "target"))
    rows = {"reads": (X_s, X_t), "writes": (X_s @ W_s.T, X_t @ W_t.T)}
    wanted = cross_lora(SiteProblem(W_s, W_t, dense(delta).numpy(), 4, **rows, options=options))
    assert relative_error(dense(carried.delta), torch.from_numpy(wanted)) < 1e-4


def test_it_keeps_the_proportions_of_the_sources_directions_which_a_projection_alone_does_not():
    site, delta, seen = _world((48, 20), (64, 28))
    before = torch.linalg.svdvals(dense(delta))[:4]
    ratios = []
    for chosen in (True, False):
        carried = _carry(CrossLoraParams(rank=12, orthogonalize=chosen), site, delta, seen)
        ratio = torch.linalg.svdvals(dense(carried.delta))[:4] / before
        ratios.append(float(ratio.max() / ratio.min()))
    assert ratios[0] == pytest.approx(1.0, abs=1e-4)
    assert ratios[1] > 1.2


def test_it_leaves_the_size_to_the_norm_parameter():
    site, delta, seen = _world((48, 20), (64, 28))
    plain = _carry(CrossLoraParams(rank=12), site, delta, seen)
    kept = _carry(CrossLoraParams(rank=12, orthogonalize=True), site, delta, seen)
    preserved = _carry(CrossLoraParams(rank=12, orthogonalize=True, norm="preserve"), site, delta, seen)
    assert kept.measurements["norm_ratio"] == pytest.approx(plain.measurements["norm_ratio"], rel=1e-5)
    assert preserved.measurements["norm_ratio"] == pytest.approx(1.0, rel=1e-5)
    assert kept.measurements["energy_kept"] == pytest.approx(plain.measurements["energy_kept"], rel=1e-4)


def test_the_cosine_says_how_far_it_bent_the_moved_update():
    site, delta, seen = _world((48, 20), (64, 28))
    plain = dense(_carry(CrossLoraParams(rank=12), site, delta, seen).delta)
    carried = _carry(CrossLoraParams(rank=12, orthogonalize=True), site, delta, seen)
    bent = dense(carried.delta)
    cosine = float((plain * bent).sum() / (plain.norm() * bent.norm()))
    assert carried.measurements["direction_cosine"] == pytest.approx(cosine, abs=1e-5)
    assert 0.5 < cosine < 0.999
    assert carried.measurements["directions_moved"] == 4


def test_no_other_orthonormal_directions_are_nearer_to_the_moved_ones():
    rng = np.random.default_rng(0)
    sizes = np.array([3.0, 1.0, 0.5])
    X = rng.normal(size=(10, 3)) * 0.4
    moved = LowRank(torch.from_numpy(X * sizes).float(), torch.eye(3))
    result, _ = recouple(moved, torch.from_numpy(sizes).float())
    U = (result.B.double() / result.B.double().norm(dim=0)).numpy()
    assert np.allclose(U.T @ U, np.eye(3), atol=1e-5)

    def cost(directions):
        return (((directions - X) * sizes) ** 2).sum()

    for step in np.geomspace(1e-3, 1.0, 200):
        other = np.linalg.qr(U + step * rng.normal(size=U.shape))
        other = other.Q * np.sign(np.diag(other.R))  # the nearest signs, not those of QR
        assert cost(U) <= cost(other) + 1e-6


def test_a_direction_of_no_size_bends_none_of_the_others():
    """One of rank 3 stored at rank 6: what fills the other three columns is arbitrary."""
    site, delta, seen = _world((40, 40), (40, 40), r=3)
    padded = LowRank(torch.cat([delta.B, delta.B], 1), torch.cat([delta.A, 0 * delta.A], 0))
    params = CrossLoraParams(rank=12, orthogonalize=True)
    one, two = _carry(params, site, delta, seen), _carry(params, site, padded, seen)
    assert relative_error(dense(two.delta), dense(one.delta)) < 1e-5
    assert two.measurements["directions_moved"] == 3


def test_directions_that_do_not_arrive_are_given_up_and_not_stretched():
    """Two of five directions lie outside of everything that the base's leading directions hold."""
    R_out, R_in = orthogonal(40, 1), orthogonal(40, 2)
    strengths = torch.cat([torch.full((10,), 5.0), torch.full((30,), 0.1)]).double()
    W = (R_out @ torch.diag(strengths) @ R_in.T).float()
    chosen = [0, 3, 7, 20, 30]
    delta = LowRank((R_out[:, chosen] * torch.tensor([5.0, 4, 3, 2, 1])).float(), R_in[:, chosen].T.float())
    params = CrossLoraParams(rank=10, alignment="projection", orthogonalize=True)
    carried = _carry(params, site_pair((40, 40), (40, 40)), delta, evidence(W, W, 8, 3))
    inside = dense(LowRank(delta.B[:, :3], delta.A[:3]))
    assert carried.measurements["directions_moved"] == 3
    assert relative_error(dense(carried.delta), inside) < 1e-4


def test_decoupling_an_update_leaves_it_as_it_was():
    delta = update(30, 20, 5, 3)
    split, sizes = decouple(delta)
    assert relative_error(dense(split), dense(delta)) < 1e-6
    assert torch.allclose(sizes.double(), torch.linalg.svdvals(dense(delta))[:5], rtol=1e-5)


@pytest.mark.parametrize("alignment", ["anchored", "projection", "index"])
@pytest.mark.parametrize("role", [Role.Q, Role.DOWN])
def test_a_sweep_does_not_change_what_is_moved(alignment, role):
    shape = (40, 40)
    seen = evidence(weight(*shape, 1), weight(*shape, 3), anchors=800, seed=5)
    site, delta = site_pair(shape, shape, role), update(*shape, 4, 7)
    plain = _carry(CrossLoraParams(rank=8, alignment=alignment), site, delta, seen)
    swept = _carry(CrossLoraParams(rank=8, alignment=alignment, sweep=(4, 16)), site, delta, seen)
    assert relative_error(dense(swept.delta), dense(plain.delta)) < 1e-4
    assert {name: swept.measurements[name] for name in plain.measurements} == pytest.approx(
        plain.measurements, rel=1e-3, abs=1e-6
    )


@pytest.mark.parametrize("alignment", ["projection", "index", "anchored"])
def test_every_swept_rank_measures_what_a_run_at_that_rank_measures(alignment):
    site, delta, seen = _world((48, 40), (48, 40))
    ranks = (4, 8, 16, 32, 400)
    swept = _carry(CrossLoraParams(rank=8, alignment=alignment, sweep=ranks), site, delta, seen).measurements
    names = ["energy_source", "energy_target", "energy_kept"]
    for k in ranks:
        alone = _carry(CrossLoraParams(rank=k, alignment=alignment), site, delta, seen).measurements
        for name in names if alignment == "anchored" else [*names, "norm_ratio"]:
            assert swept[f"{name}_at_{k}"] == pytest.approx(alone[name], rel=1e-3), (name, k)
    assert ("norm_ratio_at_4" in swept) is (alignment != "anchored")


def test_index_across_widths_keeps_the_size_of_the_directions_that_both_have():
    site, delta, seen = _world((48, 20), (16, 28))
    swept = _carry(CrossLoraParams(rank=8, alignment="index", sweep=(18,)), site, delta, seen).measurements
    alone = _carry(CrossLoraParams(rank=18, alignment="index"), site, delta, seen).measurements
    assert swept["norm_ratio_at_18"] == pytest.approx(alone["norm_ratio"], rel=1e-3)
    assert swept["norm_ratio_at_18"] ** 2 < swept["energy_kept_at_18"] - 0.01


def test_a_sweep_asks_for_each_bases_factors_once_at_the_largest_rank():
    asked = []
    site, delta, seen = _world((40, 40), (40, 40))

    class Watched(Evidence):
        def factors(self, side, rank):
            asked.append((side, rank))
            return super().factors(side, rank)

    watched = Watched(seen.weights, seen.pairs)
    _carry(CrossLoraParams(rank=8, sweep=(4, 16, 12)), site, delta, watched)
    assert asked == [("source", 16), ("target", 16)]


@pytest.mark.parametrize("shape", [(40, 30), (30, 40)])
@pytest.mark.parametrize("k", [1, 7, 30, 99])
def test_leading_directions_are_those_of_a_smaller_computation(shape, k):
    W = weight(*shape, seed=4)
    sliced, alone = truncate_factors(factorize(W, 30), k), factorize(W, k)
    assert sliced.U.is_contiguous() and sliced.V.is_contiguous()
    assert sliced.energy == pytest.approx(alone.energy, rel=1e-5)
    torch.testing.assert_close(sliced.S, alone.S, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sliced.U, alone.U, rtol=0, atol=1e-4)
    torch.testing.assert_close(sliced.V, alone.V, rtol=0, atol=1e-4)


def test_the_leading_directions_of_a_zero_weight_hold_nothing():
    assert truncate_factors(factorize(torch.zeros(6, 5), 4), 2).energy == 0.0


@pytest.mark.parametrize(("sweep", "field"), [([0], "sweep.0"), ([80, 16385], "sweep.1"), ([1] * 9, "sweep")])
def test_a_sweep_out_of_range_is_refused_at_its_field(sweep, field):
    with pytest.raises(ValidationError) as refused:
        parse_params({"name": "cross_lora", "sweep": sweep})
    assert ".".join(map(str, refused.value.errors()[0]["loc"])) == f"cross_lora.{field}"
