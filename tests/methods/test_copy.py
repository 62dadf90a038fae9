"""SimpleCopy."""

from __future__ import annotations

import pytest
import torch

from rebase.errors import IncompatiblePair
from rebase.lora.low_rank import Role, Site
from rebase.methods.base import SitePair
from rebase.methods.copy.method import Copy
from rebase.methods.copy.params import CopyParams
from support.synthetic_sites import dense, pair_of, site_pair, update

COPY = Copy()


def _carry(params, source, target, delta):
    site = site_pair(source, target)
    COPY.prepare(params, pair_of(site))
    return COPY.transfer_site(params, None, site, delta, evidence=None)


def test_the_update_is_taken_over_bit_by_bit():
    delta = update(12, 8, 3, 1)
    carried = _carry(CopyParams(), (12, 8), (12, 8), delta)
    assert torch.equal(carried.delta.B, delta.B)
    assert torch.equal(carried.delta.A, delta.A)
    assert carried.flags == ()
    assert carried.measurements["norm_ratio"] == 1.0


@pytest.mark.parametrize("target", [(16, 10), (9, 5), (16, 5), (9, 10)])
def test_padding_keeps_the_common_corner_and_says_that_it_padded(target):
    delta = update(12, 8, 3, 2)
    carried = _carry(CopyParams(pad=True), (12, 8), target, delta)
    o, i = min(12, target[0]), min(8, target[1])
    wanted = torch.zeros(target, dtype=torch.float64)
    wanted[:o, :i] = dense(delta)[:o, :i]
    assert torch.allclose(dense(carried.delta), wanted, atol=1e-6)
    assert carried.flags == ("padded",)
    assert carried.measurements["norm_ratio"] == pytest.approx(float(wanted.norm() / dense(delta).norm()))


def test_a_refusal_lists_the_first_misfits_and_counts_the_rest():
    misfits = [SitePair(Site(n, Role.Q), Site(n, Role.Q), (8, 8), (8, 9)) for n in range(9)]
    with pytest.raises(IncompatiblePair) as refused:
        COPY.prepare(CopyParams(), pair_of(*misfits))
    assert "0.q_proj (8×8 → 8×9)" in refused.value.message
    assert "and 3 more" in refused.value.message
    assert "cross_lora" in refused.value.hint


def test_copying_reads_no_evidence():
    assert COPY.needs(CopyParams()) == frozenset()
