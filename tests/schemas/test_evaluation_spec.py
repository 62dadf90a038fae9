"""What a request may ask to be measured."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from rebase.schemas.evaluation import ChoiceExample, EvaluationSpec, GenerationExample, TextExample

ONE = {"prompt": "2 + 2 =", "answer": " 4"}
CHOICE = {"prompt": "The sky is", "choices": [" blue", " green"], "label": 0}


def test_examples_are_told_apart_by_their_fields() -> None:
    spec = EvaluationSpec.model_validate({"examples": [ONE, CHOICE, {"text": "Once."}]})
    assert [type(one) for one in spec.examples] == [GenerationExample, ChoiceExample, TextExample]
    assert EvaluationSpec.model_validate(spec.model_dump()) == spec


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({}, ()),
        ({"examples": []}, ()),
        ({"tasks": []}, ()),
        ({"examples": [{"prompt": "x"}]}, ("examples", 0, "answer")),
        ({"examples": [{"prompt": "x", "answer": "  "}]}, ("examples", 0, "answer")),
        ({"examples": [ONE | {"text": "x"}]}, ("examples", 0, "prompt")),
        ({"examples": [CHOICE | {"label": 2}]}, ("examples", 0, "label")),
        ({"examples": [CHOICE | {"label": -1}]}, ("examples", 0, "label")),
        ({"examples": [CHOICE | {"choices": [" a"]}]}, ("examples", 0, "choices")),
        ({"examples": [CHOICE | {"choices": [" a", " a"]}]}, ("examples", 0, "choices")),
        ({"examples": [3]}, ("examples", 0)),
        ({"examples": [{"text": "ab"}], "score": "accuracy"}, ("score",)),
        ({"tasks": ["../../etc/passwd"]}, ("tasks", 0)),
        ({"tasks": ["/tmp/task.yaml"]}, ("tasks", 0)),
        ({"tasks": ["arc_easy", "arc_easy"]}, ("tasks",)),
        ({"tasks": ["arc_easy"], "trust_remote_code": True}, ("trust_remote_code",)),
        ({"refusals": {}}, ("refusals",)),
        ({"refusals": {"prompts": ["a"], "dataset": {"repo_id": "a/b"}}}, ("refusals",)),
        ({"refusals": {"prompts": ["a"], "tokens": 1}}, ("refusals", "tokens")),
        ({"examples": [ONE], "bootstrap": 10}, ("bootstrap",)),
        ({"examples": [ONE], "on_worse": "ignore"}, ("on_worse",)),
        ({"examples": [ONE], "controls": ["magic"]}, ("controls", 0)),
        ({"examples": [ONE], "oracle": {"repo_id": "../x"}}, ("oracle", "repo_id")),
    ],
)
def test_what_cannot_be_measured_is_refused_at_its_field(body: Any, place: tuple[Any, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        EvaluationSpec.model_validate(body)
    places = [
        tuple(part for part in error["loc"] if not str(part).startswith("of "))
        for error in caught.value.errors()
    ]
    assert place in places


def test_the_target_alone_is_always_a_control_and_controls_have_one_order() -> None:
    assert EvaluationSpec.model_validate({"examples": [ONE], "controls": []}).controls == ("zero",)
    asked = {"examples": [ONE], "controls": ["pad", "random"]}
    assert EvaluationSpec.model_validate(asked).controls == ("zero", "random", "pad")
