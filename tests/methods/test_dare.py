"""DARE after a method: what is dropped, what is rescaled, what the rank then costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rebase.lora.low_rank import LowRank, Role, Site
from rebase.methods.base import SiteResult
from rebase.methods.base_params import DareParams
from rebase.methods.dare import drop_and_rescale
from support.synthetic_sites import dense, relative_error, update

SITE = Site(3, Role.Q)
WHOLE = 24  # the smaller side: nothing is cut


def _thin(seed=0, shape=(WHOLE, 40), **params):
    delta = update(*shape, 4, 7)
    found = drop_and_rescale(
        SiteResult(delta, {"update_norm": 1.0}, ("kept",)), DareParams(seed=seed, **params), SITE
    )
    return dense(delta), found


def test_random_dropping_keeps_a_share_of_entries_and_rescales_them():
    before, found = _thin(p=0.9, rank=WHOLE)
    after = dense(found.delta)
    stays = after.abs() > 1e-4 * after.abs().max()
    assert 0.05 < float(stays.double().mean()) < 0.15
    assert relative_error(after[stays], 10 * before[stays]) < 1e-3
    assert found.measurements["dare_lost_energy"] == pytest.approx(0.0, abs=1e-5)
    assert found.flags == ("kept",)


def test_random_dropping_is_unbiased():
    before, _ = _thin(p=0.5)
    mean = torch.stack([dense(_thin(seed, p=0.5, rank=WHOLE)[1].delta) for seed in range(400)]).mean(0)
    # p = 0.5: every entry has standard deviation |x|, so the mean of 400 lies within 1/20 of the norm.
    assert relative_error(mean, before) < 0.07


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
def test_dropping_by_magnitude_is_the_literal_formula_and_says_how_long_it_gets(p):
    before, found = _thin(p=p, mode="magnitude", rank=WHOLE)
    X = before.numpy()
    keep = X.size - int(p * X.size)
    wanted = np.zeros(X.size)
    largest = np.argsort(-np.abs(X), axis=None)[:keep]
    wanted[largest] = X.ravel()[largest] / (1 - p)
    assert np.linalg.norm(dense(found.delta).numpy().ravel() - wanted) < 1e-4 * np.linalg.norm(wanted)
    ratio = np.linalg.norm(wanted) / np.linalg.norm(X)
    assert found.measurements["dare_norm_ratio"] == pytest.approx(ratio, rel=1e-4)
    assert ratio > 1.5
    assert "dare_magnitude" in found.flags


def test_the_result_keeps_the_rank_and_tells_what_the_cut_lost():
    _, found = _thin(p=0.9)
    assert found.delta.rank == 4
    assert 0.1 < found.measurements["dare_lost_energy"] < 1.0


def test_seed_and_site_decide_the_mask_and_nothing_else_does():
    delta = update(WHOLE, 40, 4, 7)
    masks = [
        drop_and_rescale(SiteResult(delta), DareParams(p=0.9, seed=seed), site).delta.B
        for seed, site in ((1, SITE), (1, SITE), (2, SITE), (1, Site(4, Role.Q)))
    ]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[3])


@pytest.mark.parametrize("mode", ["random", "magnitude"])
def test_an_update_of_zero_stays_zero(mode):
    zero = LowRank(torch.zeros(6, 2), torch.zeros(2, 5))
    found = drop_and_rescale(SiteResult(zero), DareParams(p=0.9, mode=mode), SITE)
    assert not dense(found.delta).any()
    assert all(math.isfinite(value) for value in found.measurements.values())
