"""What share of native training a transferred adapter keeps."""

from __future__ import annotations

import pytest

from rebase.errors import GapTooSmall
from rebase.evaluation.bootstrap import gap_recovered


@pytest.mark.parametrize(
    ("score", "share"),
    [(0.3, 0.0), (0.8, 1.0), (0.55, 0.5), (0.2, -0.2)],
    ids=["none", "all", "half", "worse"],
)
def test_the_target_alone_has_none_and_the_oracle_all_of_it(score, share):
    assert gap_recovered(score, base=0.3, oracle=0.8) == pytest.approx(share)


def test_losses_are_scores_with_a_minus():
    assert gap_recovered(-2.0, base=-6.0, oracle=-1.0) == pytest.approx(0.8)


def test_an_oracle_that_hardly_gains_is_refused_rather_than_divided_by():
    with pytest.raises(GapTooSmall, match=r"\+0\.049"):
        gap_recovered(0.4, base=0.3, oracle=0.349)
    with pytest.raises(GapTooSmall, match=r"-0\.010"):
        gap_recovered(0.4, base=0.3, oracle=0.29)
    assert gap_recovered(0.3, base=0.3, oracle=0.1) == 0.0
