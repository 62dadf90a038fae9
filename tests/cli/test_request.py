"""What is typed becomes one request, the same for every command; what is wrong is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.cli.request import build_request, parse_settings, parse_value
from rebase.errors import NotAvailable, RequestInvalid
from rebase.methods.auto.params import AutoParams
from rebase.methods.base_params import DareParams

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
TEXTS = {"examples": [{"text": "Some text."}]}
TASKS = {"tasks": ["arc_easy"]}  # no examples of the request's own
KEY = st.from_regex(r"[a-z_][a-z0-9_]{0,12}", fullmatch=True)


def refused(*settings: str, method: str | None = "cross_lora") -> RequestInvalid:
    with pytest.raises(RequestInvalid) as caught:
        build_request(adapter="a/b", target="c/d", method=method, settings=settings)
    return caught.value


def test_the_shortest_command_line_says_nothing_that_was_not_typed() -> None:
    request = build_request(adapter="a/b", target="c/d@v1.1")
    assert request.model_dump(exclude_unset=True) == {
        "adapter": {"repo_id": "a/b"},
        "target": {"repo_id": "c/d", "revision": "v1.1"},
    }


def test_undotted_keys_reach_the_method_and_dotted_ones_the_other_objects() -> None:
    request = build_request(
        adapter="a/b",
        target="c/d",
        source="e/f",
        method="cross_lora",
        output="me/out",
        settings=["rank=64", "output.max_rank=16", "precheck.on_incompatible=warn", "method.norm=preserve"],
    )
    assert request.method.model_dump()["rank"] == 64
    assert request.method.model_dump()["norm"] == "preserve"
    assert (request.output.repo_id, request.output.max_rank) == ("me/out", 16)
    assert request.precheck.on_incompatible == "warn"


def test_a_parameter_without_a_method_is_one_of_auto() -> None:
    request = build_request(adapter="a/b", target="c/d", settings=["layer_scale=false"])
    assert (request.method.name, request.method.layer_scale) == ("auto", False)


@given(JSON)
def test_a_value_that_is_json_arrives_as_that_value(value: object) -> None:
    assert parse_value(json.dumps(value)) == value


@given(st.text())
def test_any_other_text_arrives_as_itself_or_as_the_json_that_it_is(text: str) -> None:
    value = parse_value(text)
    assert value == text or json.loads(text) == value


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "[" * 100_000, "9" * 5000, ""])
def test_text_that_only_looks_like_json_stays_text(text: str) -> None:
    assert parse_value(text) == text


@given(KEY, JSON)
def test_every_method_parameter_arrives_whatever_its_value(key: str, value: object) -> None:
    assert parse_settings([f"{key}={json.dumps(value)}"]) == {"method": {key: value}}


@given(st.lists(st.text(), max_size=4))
def test_any_list_of_settings_gives_a_request_or_a_typed_refusal(settings: list[str]) -> None:
    try:
        build_request(adapter="a/b", target="c/d", settings=settings)
    except (RequestInvalid, NotAvailable) as exc:
        assert exc.message


def test_the_last_of_two_settings_with_one_key_counts() -> None:
    assert parse_settings(["rank=1", "rank=2"]) == {"method": {"rank": 2}}


def test_an_equals_sign_in_the_value_belongs_to_the_value() -> None:
    assert parse_settings(["a=b=c"]) == {"method": {"a": "b=c"}}


@pytest.mark.parametrize("text", ["rank", "=4", "a b=4", ".rank=4", "output.=4", "", "rank.=1"])
def test_a_setting_that_is_not_key_equals_value_is_quoted_back(text: str) -> None:
    assert "key=value" in refused(text).message


def test_an_unknown_object_is_refused_with_the_ones_there_are() -> None:
    error = refused("dare.mode=random")
    assert "'dare'" in error.message
    assert "precheck" in error.message
    assert error.hint is not None and "method.dare.mode" in error.hint


def test_a_key_below_a_plain_value_is_refused() -> None:
    assert (
        "method.rank already has a value that is not an object"
        in refused("rank=4", "method.rank.deep=1").message
    )


def test_an_unknown_parameter_is_refused_with_the_ones_there_are() -> None:
    error = refused("ranks=4")
    assert error.message == "method.ranks: there is no such parameter"
    assert error.hint is not None and "anchor_tokens" in error.hint
    assert error.pointer == "/method/ranks"


def test_a_value_out_of_range_names_the_parameter_as_it_was_typed() -> None:
    error = refused("rank=0")
    assert error.message.startswith("method.rank: ")
    assert error.pointer == "/method/rank"


def test_an_unknown_method_is_refused_with_the_ones_there_are() -> None:
    error = refused(method="magic")
    assert "there is no method 'magic'" in error.message
    assert error.hint is not None and "cross_lora" in error.hint


def test_a_number_where_text_belongs_is_told_how_to_be_text() -> None:
    error = refused("output.repo_id=12")
    assert error.pointer == "/output/repo_id"
    assert error.hint == "Write it as a JSON string: '\"12\"'"


@pytest.mark.parametrize(
    ("arguments", "pointer"),
    [
        ({"adapter": "../../etc/passwd"}, "/adapter/repo_id"),
        ({"adapter": "a/b@"}, "/adapter"),
        ({"target": ""}, "/target/repo_id"),
        ({"source": "a/b c"}, "/source/repo_id"),
        ({"source": "c/d"}, "/"),
        ({"output": "no-owner"}, "/output/repo_id"),
        ({"output": "a/b@main"}, "/output/revision"),
        ({"settings": ["adapter.repo_id=x/y"]}, "/adapter/repo_id"),
        ({"method": "copy", "settings": ["method.name=auto"]}, "/method/name"),
        ({"settings": ["method.name=4"]}, "/method/name"),
        ({"settings": ["evaluate.tasks=1"]}, "/evaluate/tasks"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, object], pointer: str) -> None:
    with pytest.raises((RequestInvalid, NotAvailable)) as caught:
        build_request(**{"adapter": "a/b", "target": "c/d", **arguments})  # type: ignore[arg-type]
    assert caught.value.pointer == pointer


def _line(*settings: str, **more: object) -> dict[str, object]:
    return {"settings": list(settings), **more}


@pytest.mark.parametrize(
    ("arguments", "pointer"),
    [
        (_line('candidates=["copy"]'), "/method/candidates"),
        (_line('candidates=["copy", "cop"]'), "/method/candidates/1/name"),
        (_line('candidates=["auto"]'), "/method/candidates/0/name"),
        (_line('candidates=[{"name": "copy", "pad": 3}]'), "/method/candidates/0/pad"),
        (_line('candidates=[{"name": "copy", "pat": 3}]'), "/method/candidates/0/pat"),
        (_line("method.dare.p=sweep", method="copy"), "/method/dare/p"),
        (_line("method.dare.p=most", method="copy"), "/method/dare/p"),
        (_line("method.dare.p=1.5", method="copy"), "/method/dare/p"),
        (
            _line('candidates=[{"name": "copy", "dare": {"p": "sweep"}}]', evaluate=TASKS),
            "/method/candidates",
        ),
        (_line("method.dare.p=sweep", "method.refine={}", evaluate=TEXTS), "/method/dare/p"),
        (
            _line(
                'candidates=["copy", {"name": "copy", "dare": {"p": "sweep"}, "refine": {}}]', evaluate=TEXTS
            ),
            "/method/candidates/1/dare/p",
        ),
    ],
)
def test_what_only_measuring_can_decide_is_refused_at_its_field(
    arguments: dict[str, Any], pointer: str
) -> None:
    with pytest.raises(RequestInvalid) as caught:
        build_request(adapter="a/b", target="c/d", **arguments)
    assert caught.value.pointer == pointer


def test_candidates_and_a_sweep_are_taken_with_examples() -> None:
    settings = ['candidates=["copy", {"name": "linear", "side": "input"}]', "method.dare.p=sweep"]
    method = build_request(adapter="a/b", target="c/d", settings=settings, evaluate=TEXTS).method
    assert isinstance(method, AutoParams)
    assert method.candidates is not None
    assert [params.name for params in method.candidates] == ["copy", "linear"]
    assert method.dare == DareParams(p="sweep")
