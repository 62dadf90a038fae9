"""Intervals against what can be computed by hand, and against how often they hold the truth."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from rebase.evaluation.bootstrap import Interval, PairedBootstrap, Undefined


def _binomial_quantile(n: int, p: float, level: float) -> int:
    """The smallest k with P(X ≤ k) ≥ level."""
    total = 0.0
    for k in range(n + 1):
        total += comb(n, k) * p**k * (1 - p) ** (n - k)
        if total >= level:
            return k
    return n


@pytest.mark.parametrize(("right", "n"), [(5, 10), (3, 12), (16, 40), (38, 40)])
def test_the_interval_of_a_share_of_right_answers_is_the_binomial_one(right: int, n: int) -> None:
    scores = [1.0] * right + [0.0] * (n - right)
    found = PairedBootstrap({"moved": scores}, resamples=20_000, seed=3).mean("moved")

    assert found.value == pytest.approx(right / n)
    assert found.low == pytest.approx(_binomial_quantile(n, right / n, 0.025) / n)
    assert found.high == pytest.approx(_binomial_quantile(n, right / n, 0.975) / n)
    assert found.n == n


def test_two_examples_resample_to_one_of_three_means() -> None:
    # Both draws the first: 1/4; one of each: 1/2; both the second: 1/4. So 95 % needs all of them.
    found = PairedBootstrap({"a": [0.0, 1.0]}, resamples=2000, seed=0).mean("a")
    assert (found.low, found.value, found.high) == (0.0, 0.5, 1.0)


@pytest.mark.parametrize("draw", ["exponential", "binary"])
def test_the_interval_of_a_difference_holds_the_truth_as_often_as_it_says(draw: str) -> None:
    world = np.random.default_rng(11)
    held = 0
    for trial in range(400):
        easy = world.exponential(size=60) if draw == "exponential" else world.integers(0, 2, 60) * 1.0
        gain = world.exponential(0.5, 60) if draw == "exponential" else world.integers(0, 2, 60) * 1.0
        found = PairedBootstrap({"a": easy + gain, "b": easy}, resamples=400, seed=trial).difference("a", "b")
        held += found.low <= 0.5 <= found.high
    assert 0.90 <= held / 400 <= 0.98


def test_what_makes_an_example_easy_for_both_cancels() -> None:
    base = list(np.random.default_rng(1).normal(size=50))
    better = [score + 0.25 for score in base]
    resampled = PairedBootstrap({"moved": better, "target": base}, seed=2)

    found = resampled.difference("moved", "target")
    assert found.low == pytest.approx(0.25)
    assert found.high == pytest.approx(0.25)
    assert found.above_zero and not found.below_zero
    assert resampled.mean("target").high - resampled.mean("target").low > 0.4


def test_a_share_follows_its_parts_through_every_draw() -> None:
    world = np.random.default_rng(5)
    alone, home = world.normal(size=80), world.normal(size=80)
    gain = world.exponential(size=80)
    scores = {
        "moved": alone + 0.5 * gain,
        "target": alone,
        "source_adapter": home + gain,
        "source": home,
    }
    found = PairedBootstrap(scores).share("moved", "target", "source_adapter", "source")
    assert isinstance(found, Interval)
    assert (found.low, found.value, found.high) == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("gain", "why"),
    [
        ([0.01] * 40, "below 0.05"),
        ([-1.0] * 40, "below 0.05"),
        ([2.0, -1.8] * 20, "interval includes zero"),
    ],
)
def test_a_share_of_nothing_is_undefined_and_says_why(gain: list[float], why: str) -> None:
    zero = [0.0] * 40
    scores = {"moved": [1.0] * 40, "target": zero, "whole": gain, "base": zero}
    found = PairedBootstrap(scores).share("moved", "target", "whole", "base")
    assert isinstance(found, Undefined)
    assert why in found.reason
    assert found.n == 40


@pytest.mark.parametrize("n", range(20, 40))
def test_no_end_of_a_share_is_made_of_a_draw_without_a_gain(n: int) -> None:
    """Six of n right answers, against one: a fortieth of the draws has no gain, give or take a few."""
    right, nothing, other = [1.0] * 6 + [0.0] * (n - 6), [0.0] * n, [0.0] * (n - 1) + [1.0]
    scores = {"moved": right, "target": nothing, "whole": right, "base": other}
    for seed in range(5):
        found = PairedBootstrap(scores, resamples=100, seed=seed).share("moved", "target", "whole", "base")
        assert isinstance(found, Undefined) or found.high < 100.0


def test_gap_recovered_is_refused_where_training_on_the_target_gains_too_little() -> None:
    flat = {"moved": [0.5] * 9, "target": [0.5] * 9, "oracle": [0.52] * 9}
    found = PairedBootstrap(flat).gap("moved", "target", "oracle")
    assert isinstance(found, Undefined) and "at least 0.05" in found.reason

    half = {"moved": [0.5, 0.5], "target": [0.0, 0.0], "oracle": [1.0, 1.0]}
    told = PairedBootstrap(half).gap("moved", "target", "oracle")
    assert isinstance(told, Interval) and told.value == pytest.approx(0.5)


def test_the_same_seed_gives_the_same_interval_whoever_else_is_compared() -> None:
    scores = list(np.random.default_rng(0).normal(size=700))
    alone = PairedBootstrap({"a": scores}, seed=4).mean("a")
    beside = PairedBootstrap({"b": scores[::-1], "a": scores}, seed=4).mean("a")
    assert alone == beside
    assert PairedBootstrap({"a": scores}, seed=5).mean("a") != alone


@pytest.mark.parametrize("scores", [{"a": []}, {"a": [1.0], "b": [1.0, 2.0]}, {}])
def test_scores_of_other_examples_are_not_compared(scores: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="same examples"):
        PairedBootstrap(scores)
