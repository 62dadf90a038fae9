"""Subscriptions as they are sent: templates, guards, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rebase.errors import RequestInvalid
from rebase.schemas.guards import Guards, ModelFacts, find_violations
from rebase.schemas.repos import RepoRef
from rebase.schemas.subscriptions import (
    SubscriptionRequest,
    build_conversion_request,
    check_subscription_request,
    check_template,
    fill_template,
)
from support.campaigns import a_subscription

SINCE = datetime(2026, 1, 1, tzinfo=UTC)
FACTS = ModelFacts(
    repo_id="acme/base-2-instruct",
    sha="1" * 40,
    created_at=SINCE + timedelta(days=1),
    bytes=2_000,
    parameters=1_000,
    model_type="llama",
    licences=("apache-2.0",),
    tags=(),
    content="c",
)


def codes(facts: ModelFacts = FACTS, **guards: Any) -> list[str]:
    return [reason.code for reason in find_violations(Guards(**guards), facts, SINCE)]


def test_a_release_within_all_guards_meets_no_objection() -> None:
    within = {"min_bytes": 2_000, "max_bytes": 2_000, "min_parameters": 1, "max_parameters": 1_000}
    assert codes(**within, kind="instruct", licences=["Apache-2.0"]) == []


@pytest.mark.parametrize(
    "guards",
    [{"min_bytes": 2_001}, {"max_bytes": 1_999}, {"min_parameters": 1_001}, {"max_parameters": 999}],
)
def test_each_bound_on_size_refuses_with_its_own_reason(guards: dict[str, int]) -> None:
    assert codes(**guards) == list(guards)


def test_a_licence_that_is_not_listed_and_a_missing_one_are_refused() -> None:
    assert codes(licences=["mit"]) == ["licence"]
    assert codes(FACTS.model_copy(update={"licences": ()}), licences=["mit"]) == ["licence"]


def test_a_repo_that_existed_before_the_subscription_is_no_release() -> None:
    assert codes(FACTS.model_copy(update={"created_at": SINCE - timedelta(seconds=1)})) == ["existed_before"]


@pytest.mark.parametrize(
    ("name", "tags", "kind"),
    [
        ("acme/base-2-instruct", (), "instruct"),
        ("acme/gemma-3-1b-it", (), "instruct"),
        ("acme/gemma-3-1b-pt", ("conversational",), "base"),  # a word of the name goes first
        ("acme/Qwen3-0.6B-Base", ("conversational",), "base"),
        ("acme/Qwen3-0.6B", ("conversational",), "instruct"),
        ("acme/Italian-1", (), "base"),  # 'it' is a word, not a beginning
    ],
)
def test_instruct_or_base_is_told_by_a_word_of_the_name_else_by_a_tag(
    name: str, tags: tuple[str, ...], kind: str
) -> None:
    facts = FACTS.model_copy(update={"repo_id": name, "tags": tags})
    assert facts.kind == kind
    other = "base" if kind == "instruct" else "instruct"
    assert (codes(facts, kind=kind), codes(facts, kind=other)) == ([], ["kind"])


def test_a_range_that_nothing_can_pass_is_refused_at_once() -> None:
    with pytest.raises(ValidationError, match="no release can pass"):
        Guards(min_bytes=2, max_bytes=1)


def test_a_template_is_filled_in_with_adapter_and_base() -> None:
    template = "{target_owner}/{adapter}-by-{owner}-on-{target}"
    assert fill_template(template, "acme/sql", "tiny/harbor-2") == "tiny/sql-by-acme-on-harbor-2"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{owner}/{adaptr}", "no field '{adaptr}'"),
        ("{adapter}", "owner/name"),
        ("{owner}/x/{adapter}", "owner/name"),
        ("{owner}/{adapter", "brace"),
        ("{owner}/{{adapter}}", "brace"),
        ("{owner}/a b", "repo id"),
        ("../{adapter}", "repo id"),
        ("{owner}/{0.__class__}", "no field"),
        ("{owner}/{adapter!r}", "no field"),
    ],
)
def test_a_template_that_can_make_no_repo_id_is_refused(template: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check_template(template)


@given(st.text(max_size=30))
def test_whatever_template_is_accepted_makes_legal_names_or_is_told_later_to_be_too_long(text: str) -> None:
    try:
        check_template(text)
    except ValueError:
        return
    assert fill_template(text, "owner/name", "owner/name").count("/") == 1


def test_two_adapters_that_would_go_to_one_repo_are_refused() -> None:
    with pytest.raises(ValidationError, match="the same output repo"):
        a_subscription(output="acme/{target}")
    with pytest.raises(ValidationError, match="the same output repo"):
        a_subscription(
            adapters=[{"repo_id": "acme/sql"}, {"repo_id": "ACME/SQL"}], output="{owner}/{adapter}-{target}"
        )


@pytest.mark.parametrize(
    "change",
    [
        {"bases": None},
        {"successors_of": "acme/base"},  # beside `bases`
        {"bases": "*/x"},
        {"bases": None, "successors_of": "base"},
        {"adapters": []},
        {"adapters": [{"repo_id": "acme/a"}, {"repo_id": "acme/a"}]},
        {"adapters": [{"repo_id": "no-owner"}]},
        {"guards": {"licences": []}},
        {"guards": {"max_jobs": 0}},
        {"guards": {"max_bytes": 10**400}},
        {"since": "0001-01-01T00:00:00+14:00"},
        {"since": "9999-12-31T23:59:59-14:00"},
        {"method": {"name": "magic"}},
        {"name": "two\nlines"},
        {"colour": "red"},
    ],
)
def test_a_subscription_that_cannot_be_meant_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        a_subscription(**change)


def test_a_method_and_a_template_may_be_given_by_name_alone() -> None:
    spec = a_subscription(method="copy", output="{owner}/{adapter}-x")
    assert (spec.method.name, spec.output.repo_id, spec.output.private) == (
        "copy",
        "{owner}/{adapter}-x",
        True,
    )


def test_what_every_job_would_be_refused_for_is_refused_when_subscribing() -> None:
    auto = {"name": "auto", "candidates": [{"name": "copy"}, {"name": "cross_lora"}]}
    with pytest.raises(RequestInvalid, match="Candidates are compared"):
        check_subscription_request(a_subscription(method=auto))
    measured = {"examples": [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "d"}]}
    check_subscription_request(a_subscription(method=auto, evaluate=measured))
    with pytest.raises(RequestInvalid, match="Candidates are compared"):
        check_subscription_request(a_subscription(method=auto, evaluate=measured, dry_run=True))


def test_a_job_of_a_release_is_pinned_to_its_commit_and_a_pre_check_has_no_output() -> None:
    spec = a_subscription(
        evaluate={"examples": [{"prompt": "a", "answer": "b"}] * 2},
        callback={"url": "https://tools.example/hook"},
    )
    target = RepoRef(repo_id="acme/base-2", revision="2" * 40)
    convert = build_conversion_request(spec, spec.adapters[0], target, "convert", "acme/out")
    precheck = build_conversion_request(spec, spec.adapters[0], target, "precheck", "acme/out")
    assert (convert.target, convert.output.repo_id) == (target, "acme/out")
    assert (precheck.output.repo_id, precheck.evaluate, precheck.callback) == (None, None, None)
    assert convert.callback == spec.callback


def test_a_date_without_a_zone_is_utc() -> None:
    assert a_subscription(since="2026-01-01").since == SINCE


def test_a_subscription_survives_being_stored() -> None:
    spec = a_subscription(since="2026-01-01", guards={"licences": ["MIT"]})
    assert SubscriptionRequest.model_validate(spec.model_dump(mode="json")) == spec
