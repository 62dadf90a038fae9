"""What a trained target is compared with, against formulas written out and against what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rebase.models.vocabulary import Vocabulary, find_shared_tokens
from rebase.training.losses import (
    SharedTokenIds,
    compute_shared_mass,
    kl_divergence,
    projection_loss,
    restricted_logprobs,
    select_shared_ids,
    shifted_target,
    topk_columns,
    topk_plus_rest,
)

N = 5


def logits(seed: int, size: int = 11) -> Tensor:
    return 3.0 * torch.randn(N, size, generator=torch.Generator().manual_seed(seed))


def softmax(rows: np.ndarray) -> np.ndarray:
    powers = np.exp(rows - rows.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


OURS, THEIRS = torch.tensor([0, 3, 4, 8, 10]), torch.tensor([12, 1, 7, 2, 0])


def shift_loss(teacher: Tensor, source: Tensor, base: Tensor, student: Tensor, most: int = 99) -> Tensor:
    """On the shared tokens of a vocabulary of 11 and one of 13."""
    told, alone = restricted_logprobs(teacher, OURS), restricted_logprobs(source, OURS)
    columns = topk_columns(told, alone, most)
    wanted = shifted_target(
        topk_plus_rest(restricted_logprobs(base, THEIRS), columns),
        topk_plus_rest(told, columns),
        topk_plus_rest(alone, columns),
    )
    return kl_divergence(wanted, topk_plus_rest(restricted_logprobs(student, THEIRS), columns))


def test_the_shift_is_the_targets_own_distribution_times_what_the_adapter_changes() -> None:
    S, SD, T, T2 = logits(1), logits(2), logits(3, 13), logits(4, 13)
    p_s, p_sd = (softmax(rows.double().numpy()[:, OURS]) for rows in (S, SD))
    p_t, p_t2 = (softmax(rows.double().numpy()[:, THEIRS]) for rows in (T, T2))
    q = p_t * p_sd / p_s
    q /= q.sum(-1, keepdims=True)
    expected = (q * np.log(q / p_t2)).sum(-1)

    np.testing.assert_allclose(shift_loss(SD, S, T, T2).numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("most", [2, 99])
def test_an_adapter_that_does_nothing_asks_for_nothing(most: int) -> None:
    student = logits(3, 13).requires_grad_()

    loss = shift_loss(logits(1), logits(1), logits(3, 13), student, most).sum()
    loss.backward()  # type: ignore[no-untyped-call]

    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-5)
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-6


def test_the_literal_objective_asks_for_the_source_base_even_then() -> None:
    source, target = logits(1), logits(3, 13)

    assert (
        float(kl_divergence(restricted_logprobs(source, OURS), restricted_logprobs(target, THEIRS)).mean())
        > 0.1
    )


@pytest.mark.parametrize("most", [1, 3, 99])
def test_one_model_with_the_true_adapter_is_the_answer(most: int) -> None:
    alone, adapted = logits(1), logits(2)
    told, source = restricted_logprobs(adapted, OURS), restricted_logprobs(alone, OURS)
    columns = topk_columns(told, source, most)
    base, student = topk_plus_rest(source, columns), topk_plus_rest(told, columns).requires_grad_()

    loss = kl_divergence(shifted_target(base, topk_plus_rest(told, columns), base), student).sum()
    loss.backward()  # type: ignore[no-untyped-call]

    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(lift=st.floats(-20.0, 20.0), which=st.integers(0, 3), seed=st.integers(0, 99))
def test_logits_matter_only_up_to_a_constant(lift: float, which: int, seed: int) -> None:
    rows = [logits(seed + at, 11 if at < 2 else 13) for at in range(4)]
    plain = shift_loss(*rows)
    rows[which] = rows[which] + lift

    torch.testing.assert_close(shift_loss(*rows), plain, atol=1e-4, rtol=1e-4)


def test_tokens_that_only_one_side_has_are_not_looked_at() -> None:
    rows = [logits(1), logits(2), logits(3, 13), logits(4, 13)]
    plain = shift_loss(*rows)
    for row, ids in zip(rows, (OURS, OURS, THEIRS, THEIRS), strict=True):
        others = [at for at in range(row.shape[1]) if at not in ids.tolist()]
        row[:, others] += 5.0

    torch.testing.assert_close(shift_loss(*rows), plain)


@settings(max_examples=20, deadline=None)
@given(most=st.integers(1, 4), seed=st.integers(0, 99))
def test_looking_at_fewer_tokens_one_by_one_never_asks_for_more(most: int, seed: int) -> None:
    wanted, student = (
        restricted_logprobs(logits(seed), OURS),
        restricted_logprobs(logits(seed + 1, 13), THEIRS),
    )
    columns = topk_columns(wanted, wanted, most)

    found = kl_divergence(topk_plus_rest(wanted, columns), topk_plus_rest(student, columns))

    assert bool((found <= kl_divergence(wanted, student) + 1e-5).all())
    assert bool((found >= -1e-5).all())


def test_the_listed_tokens_and_the_others_are_all_there_is() -> None:
    logs = restricted_logprobs(logits(1), OURS)
    columns = topk_columns(logs, logs, 2)

    found = topk_plus_rest(logs, columns)

    assert found.shape == (N, 3)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(N))
    torch.testing.assert_close(found[:, 0], logs.max(-1).values)


def test_outcomes_that_never_happen_leave_a_number() -> None:
    sure = torch.full((1, 5), -1e4)
    sure[0, 2] = 0.0
    logs = sure.log_softmax(-1)
    columns = topk_columns(logs, logs, 1)
    found = topk_plus_rest(logs, columns)

    assert bool(torch.isfinite(shifted_target(found, found, found)).all())
    assert float(kl_divergence(found, found)) == pytest.approx(0.0, abs=1e-6)


def test_coverage_is_the_models_own_probability_of_shared_tokens() -> None:
    rows = logits(1)
    expected = softmax(rows.double().numpy())[:, OURS].sum(-1)

    np.testing.assert_allclose(compute_shared_mass(rows, OURS).numpy(), expected, rtol=1e-5)


def test_a_temperature_softens_both_sides_and_keeps_the_size_of_the_gradient() -> None:
    """KL at τ is about 1/τ² of that at 1 where logits are close, so that τ² brings it back."""
    wanted, student = logits(1), logits(2)
    every = torch.arange(11)
    soft = kl_divergence(
        restricted_logprobs(wanted, every, 30.0), restricted_logprobs(student, every, 30.0), 30.0
    )
    softer = kl_divergence(
        restricted_logprobs(wanted, every, 60.0), restricted_logprobs(student, every, 60.0), 60.0
    )

    torch.testing.assert_close(soft, softer, rtol=0.15, atol=0.0)


def _words(*tokens: str) -> Vocabulary:
    pieces = {token: at for at, token in enumerate(tokens)}
    return Vocabulary({token.encode(): at for token, at in pieces.items()}, pieces)


def test_vocabularies_of_one_size_are_not_one_vocabulary() -> None:
    a, b = _words("a", "b", "c"), _words("c", "a", "d")

    other = select_shared_ids(find_shared_tokens(a, b), 3, 3)
    same = select_shared_ids(find_shared_tokens(a, a), 8, 6)

    assert (other.source.tolist(), other.target.tolist()) == ([0, 2], [1, 0])
    assert same.source.tolist() == same.target.tolist() == list(range(6))  # padding behind the words too
    assert isinstance(same.to(torch.device("cpu")), SharedTokenIds)
    assert select_shared_ids(find_shared_tokens(a, b), 2, 3).source.tolist() == [
        0
    ]  # an id that the model has no row for


def test_hidden_states_are_compared_through_the_head() -> None:
    wanted, found, head = logits(1, 4), logits(2, 3), logits(3, 3)[:4]
    expected = ((found @ head.T - wanted) ** 2).mean() / (wanted**2).mean()

    torch.testing.assert_close(projection_loss(wanted, found, head), expected)
    assert float(projection_loss(wanted, found, torch.zeros(4, 3))) == pytest.approx(1.0)
    assert float(projection_loss(torch.zeros(5, 4), found, head)) == 0.0
