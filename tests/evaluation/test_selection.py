"""Which candidate is kept: laws of the choice, and which methods are candidates at all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.evaluation.selection import ExampleSplit, choose_best, split_examples
from rebase.methods.activation.params import ActivationParams
from rebase.methods.auto.candidates import list_candidates
from rebase.methods.auto.params import AutoParams
from rebase.methods.base_params import DareParams
from rebase.methods.copy.params import CopyParams
from rebase.methods.cross_lora.params import CrossLoraParams
from rebase.methods.dare import DARE_DROP_RATES, dare_variants
from rebase.methods.distill.params import DistillParams
from rebase.methods.linear.params import LinearParams
from rebase.methods.params import PARAMS_BY_NAME, format_method, parse_params

# Few different values, so that ties are common, and exact in binary, so that they are ties.
SCORE = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0])


@st.composite
def contests(draw: st.DrawFn) -> tuple[list[float], list[list[float]], ExampleSplit]:
    count = draw(st.integers(1, 24))
    rows = st.lists(SCORE, min_size=count, max_size=count)
    scores = draw(st.lists(rows, min_size=1, max_size=6))
    return draw(rows), scores, split_examples(count, draw(st.integers(0, 99)))


def mean(scores: Sequence[float], places: Sequence[int]) -> float:
    return float(np.mean([scores[place] for place in places]))


@given(st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_every_example_is_in_one_half_and_eight_are_enough_to_split(count: int, seed: int) -> None:
    found = split_examples(count, seed)
    if count < 8:
        assert found.is_shared
        assert found.selection_indices == found.confirmation_indices == tuple(range(count))
        return
    assert not found.is_shared
    assert sorted((*found.selection_indices, *found.confirmation_indices)) == list(range(count))
    assert len(found.selection_indices) - len(found.confirmation_indices) == count % 2
    assert found == split_examples(count, seed)


def test_another_seed_splits_otherwise() -> None:
    assert len({split_examples(20, seed) for seed in range(8)}) > 1


@given(contests())
def test_the_highest_mean_on_the_choosing_half_wins_and_the_simplest_of_equals(
    contest: tuple[list[float], list[list[float]], ExampleSplit],
) -> None:
    alone, scores, split = contest
    found = choose_best(alone, scores, split)
    assert found.best_index is not None
    means = [mean(row, split.selection_indices) for row in scores]
    assert means[found.best_index] == pytest.approx(max(means))
    assert all(value < means[found.best_index] - 1e-12 for value in means[: found.best_index])


@given(contests())
def test_what_is_kept_beats_the_target_where_it_was_chosen_and_is_not_worse_elsewhere(
    contest: tuple[list[float], list[list[float]], ExampleSplit],
) -> None:
    alone, scores, split = contest
    found = choose_best(alone, scores, split)
    assert found.best_index is not None
    better = (
        mean(scores[found.best_index], split.selection_indices) > mean(alone, split.selection_indices) + 1e-12
    )
    worse = (
        mean(scores[found.best_index], split.confirmation_indices)
        < mean(alone, split.confirmation_indices) - 1e-12
    )
    expected = "none_better" if not better else "not_confirmed" if worse else "better"
    assert found.status == expected


@given(contests(), st.data())
def test_scores_of_the_confirming_half_do_not_choose(
    contest: tuple[list[float], list[list[float]], ExampleSplit], data: st.DataObject
) -> None:
    alone, scores, split = contest
    if split.is_shared:
        return
    changed = [list(row) for row in scores]
    for row in changed:
        for place in split.confirmation_indices:
            row[place] = data.draw(SCORE)
    assert choose_best(alone, changed, split).best_index == choose_best(alone, scores, split).best_index


@given(contests(), st.data())
def test_what_is_not_fit_changes_nothing_by_being_there(
    contest: tuple[list[float], list[list[float]], ExampleSplit], data: st.DataObject
) -> None:
    alone, scores, split = contest
    fit = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    found = choose_best(alone, scores, split, fit)
    left = [place for place, stays in enumerate(fit) if stays]
    if not left:
        assert (found.best_index, found.status) == (None, "none_fit")
        return
    among = choose_best(alone, [scores[place] for place in left], split)
    assert among.best_index is not None
    assert (found.best_index, found.status) == (left[among.best_index], among.status)


def test_a_lucky_choice_that_the_other_half_contradicts_is_not_kept() -> None:
    split = split_examples(8, 0)
    alone = [0.5] * 8
    lucky = [1.0 if place in split.selection_indices else 0.0 for place in range(8)]
    assert choose_best(alone, [lucky], split).status == "not_confirmed"


@pytest.mark.parametrize(
    ("alone", "scores", "fit"),
    [([0.0, 1.0], [[1.0]], None), ([0.0], [[float("nan")]], None), ([0.0], [[1.0]], [])],
)
def test_scores_that_do_not_belong_together_are_refused(
    alone: list[float], scores: list[list[float]], fit: list[bool] | None
) -> None:
    with pytest.raises(ValueError, match=r"must be finite|for each of|eligibility flag"):
        choose_best(alone, scores, split_examples(len(alone), 0), fit)


def test_without_a_list_every_method_is_a_candidate_but_what_was_not_allowed() -> None:
    tried = list_candidates(AutoParams(train=True), has_pool=True, allow_text=True)
    assert ActivationParams(solve="step") in tried
    every = [params.name for params in tried]
    assert set(every) == set(PARAMS_BY_NAME) - {"auto", "cast"}
    assert every[0] == "copy"
    assert every[-1] == "distill"
    fewest = {params.name for params in list_candidates(AutoParams(), has_pool=False, allow_text=False)}
    assert set(every) - fewest == {"anchor_ridge", "geometric", "activation", "distill"}
    assert "cast" not in {
        one.name for one in list_candidates(AutoParams(train=True), has_pool=True, allow_text=False)
    }


def test_candidates_get_what_auto_was_asked_to_do_with_any_update() -> None:
    auto = AutoParams.model_validate(
        {
            "layer_scale": False,
            "dare": {"p": 0.8},
            "candidates": ["linear", {"name": "copy", "dare": {"p": 0.5}, "fold": True}],
        }
    )
    one, two = list_candidates(auto, has_pool=False, allow_text=False)
    assert one == LinearParams(layer_scale=False, dare=DareParams(p=0.8))
    assert two == CopyParams(layer_scale=False, fold=True, dare=DareParams(p=0.5))


def test_a_sweep_is_one_variant_for_each_share_with_none_first() -> None:
    swept = CopyParams(dare=DareParams(p="sweep", seed=3))
    found = dare_variants(swept)
    assert found[0] == CopyParams()
    assert [one.dare and one.dare.p for one in found] == [None, *DARE_DROP_RATES[1:]]
    assert all(one.dare is None or one.dare.seed == 3 for one in found)
    assert dare_variants(CopyParams(dare=DareParams(p=0.9))) == (CopyParams(dare=DareParams(p=0.9)),)


@pytest.mark.parametrize(
    ("method", "shown"),
    [
        ("copy", "copy"),
        ({"name": "linear", "side": "input"}, 'linear (side="input")'),
        ({"name": "copy", "dare": {"p": 0.9}}, "copy (dare.p=0.9)"),
        ({"name": "copy", "dare": {"p": 0.5, "seed": 2}}, "copy (dare.p=0.5, dare.seed=2)"),
        ({"name": "copy", "refine": {}}, "copy (refine.steps=30)"),
        ({"name": "auto", "candidates": ["copy"]}, None),
    ],
)
def test_a_method_in_one_line_says_what_differs_from_its_defaults(method: object, shown: str | None) -> None:
    found = format_method(parse_params(method).model_dump(mode="json"))  # type: ignore[arg-type]
    assert found == shown or (shown is None and found.startswith("auto (candidates=") and len(found) < 70)


def test_a_label_reads_what_a_request_holds() -> None:
    assert (
        format_method({"name": "distill"})
        == format_method(DistillParams().model_dump(mode="json"))
        == "distill"
    )
    assert format_method(CrossLoraParams(rank=8).model_dump(mode="json")) == "cross_lora (rank=8)"
