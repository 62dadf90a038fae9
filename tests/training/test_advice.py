"""What a training's curve is told to mean."""

from __future__ import annotations

import pytest

from rebase.training.loop import suggest_more_training


def said(*held_out: float) -> str | None:
    return suggest_more_training(
        [{"steps": 20.0 * at, "held_out": nats} for at, nats in enumerate(held_out)], "tokens", "steps"
    )


@pytest.mark.parametrize(
    "curve",
    [
        (),
        (5.0,),
        (5.0, 3.0, 2.0, 1.99),  # the last stretch brought next to nothing
        (5.0, 3.0, 2.0, 2.01, 2.02),  # nor did it lose any
        (5.0, 5.1, 5.2),  # it never helped, of which the job itself speaks
    ],
)
def test_a_training_that_came_to_its_end_gets_no_advice(curve: tuple[float, ...]) -> None:
    assert said(*curve) is None


def test_one_that_learnt_its_text_by_heart_wants_more_text() -> None:
    # SmolLM2-135M to Gemma-3-270M on a domain language, 21,463 tokens
    found = said(5.469, 3.428, 3.203, 3.162, 3.216, 3.26, 3.3)
    assert found is not None
    assert "lowest after 60 of 120 steps" in found
    assert "(tokens)" in found


def test_one_whose_last_step_was_the_best_wants_more_steps() -> None:
    found = said(5.0, 3.0, 2.0)
    assert found is not None
    assert "(steps)" in found
