"""Every endpoint of the app × another tenant's id, a wrong scope, a key that has ended, no key at all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rebase.schemas.api_keys import Scope
from service.auth import get_declared_scopes, get_required_scope
from support.api import BODY, Api
from support.tenants import OPEN, Household, bearer, ended_keys, guarded_routes, without

_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
_NOBODYS = "0" * 32


@pytest.fixture
def guarded(database_url: str, tmp_path: Path) -> Iterator[Api]:
    """The app with keys, on either kind of database."""
    with Api.start(database_url, tmp_path, auth="keys", secret_keys=None, host="0.0.0.0") as running:
        yield running


@pytest.fixture
def sqlite_guarded(sqlite_url: str, tmp_path: Path) -> Iterator[Api]:
    """The same, where the database makes no difference."""
    with Api.start(sqlite_url, tmp_path, auth="keys", host="0.0.0.0") as running:
        yield running


def _path(template: str, household: Household) -> str:
    return _PARAMETER.sub(lambda match: household.id_for(match[1]), template)


def test_every_route_declares_the_scope_that_it_needs(api: Api) -> None:
    found = get_declared_scopes(api.client.app)  # type: ignore[arg-type]
    undeclared = {path for (_, path), scope in found.items() if scope is None}

    assert undeclared <= OPEN, "these routes neither take CallerDep nor AdminDep"
    assert len(found) > len(undeclared)


def test_a_route_that_is_not_for_admins_needs_read_to_look_and_convert_to_act(api: Api) -> None:
    for method, path, scope in guarded_routes(api):
        assert scope in {get_required_scope(method), Scope.ADMIN}, (method, path)
    admin = {path for _, path, scope in guarded_routes(api) if scope is Scope.ADMIN}
    assert admin >= {"/keys", "/keys/{key_id}", "/hub-token", "/audit", "/tenant-data"}


def test_the_openapi_page_says_which_scope_an_operation_needs(api: Api) -> None:
    paths = api.client.get("/openapi.json").json()["paths"]

    assert paths["/convert"]["post"]["x-scope"] == "convert"
    assert paths["/jobs"]["get"]["x-scope"] == "read"
    assert paths["/keys"]["post"]["x-scope"] == "admin"
    assert "x-scope" not in paths["/livez"]["get"]


def test_another_tenants_id_is_answered_like_one_that_does_not_exist(guarded: Api) -> None:
    ours, theirs = (Household.make(guarded.store, name) for name in ("acme", "rival"))
    asked = 0
    for method, template, scope in guarded_routes(guarded):
        if "{" not in template:
            continue
        headers = ours.headers(scope)
        foreign, absent = _path(template, theirs), _PARAMETER.sub(_NOBODYS, template)
        found = guarded.client.request(method, foreign, headers=headers)
        missing = guarded.client.request(method, absent, headers=headers)

        assert found.status_code in {404, 422}, (method, template, found.text)
        assert found.status_code == missing.status_code
        assert without(found, *theirs.ids.values()) == without(missing, _NOBODYS)
        asked += 1
    assert asked >= 9
    for kind in ("job_id", "pool_id"):
        assert not guarded.store.jobs.get("rival", theirs.ids[kind]).cancel_requested


def test_what_is_listed_is_ones_own(guarded: Api) -> None:
    ours, theirs = (Household.make(guarded.store, name) for name in ("acme", "rival"))
    foreign = [*theirs.ids.values(), *theirs.keys.values(), "rival"]
    for method, template, scope in guarded_routes(guarded):
        if method != "GET" or "{" in template:
            continue
        answer = guarded.client.get(template, headers=ours.headers(scope))
        assert answer.status_code == 200, template
        assert not [text for text in foreign if text in answer.text], template


@pytest.mark.parametrize("how", ["none", "unknown", "revoked", "expired", "no bearer"])
def test_without_a_living_key_no_route_answers(guarded: Api, how: str) -> None:
    ours = Household.make(guarded.store, "acme")
    ended = ended_keys(guarded.store, "acme")
    headers = {
        "none": {},
        "unknown": bearer("rb_" + "x" * 43),
        "no bearer": {"Authorization": f"Basic {ours.keys[Scope.ADMIN]}"},
        **{name: bearer(key) for name, key in ended.items()},
    }[how]
    for method, template, _ in guarded_routes(guarded):
        body = BODY if method == "POST" else None
        answer = guarded.client.request(method, _path(template, ours), headers=headers, json=body)

        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorised"), (method, template)
        assert answer.headers["www-authenticate"] == "Bearer"
    assert guarded.store.jobs.list("acme").jobs[-1].state == "queued"


def test_a_key_without_the_scope_is_refused_and_told_which_one_is_needed(guarded: Api) -> None:
    ours = Household.make(guarded.store, "acme")
    refused = 0
    for method, template, scope in guarded_routes(guarded):
        for lower in Scope:
            if lower.allows(scope):
                continue
            answer = guarded.client.request(method, _path(template, ours), headers=ours.headers(lower))
            problem = answer.json()

            assert (answer.status_code, problem["code"]) == (403, "forbidden"), (method, template, lower)
            assert f"scope '{scope}'" in problem["detail"]
            refused += 1
    assert refused >= 20


def test_the_needed_scope_and_those_above_it_are_let_in(sqlite_guarded: Api) -> None:
    for scope in Scope:
        ours = Household.make(sqlite_guarded.store, f"acme-{scope}")
        for method, template, needed in guarded_routes(sqlite_guarded):
            if not scope.allows(needed) or "events" in template:  # a stream of a job that nobody works on
                continue
            answer = sqlite_guarded.client.request(method, _path(template, ours), headers=ours.headers(scope))
            assert answer.status_code not in {401, 403, 500}, (method, template, scope)


def test_a_key_speaks_for_its_own_tenant_alone_when_it_makes_and_ends_keys(sqlite_guarded: Api) -> None:
    ours, theirs = (Household.make(sqlite_guarded.store, name) for name in ("acme", "rival"))
    admin = ours.headers(Scope.ADMIN)

    made = sqlite_guarded.client.post("/keys", json={"name": "ci", "scope": "read"}, headers=admin).json()
    listed = sqlite_guarded.client.get("/keys", headers=admin).json()["keys"]

    assert made["id"] in {key["id"] for key in listed}
    assert all("key" not in key for key in listed)
    jobs = sqlite_guarded.client.get("/jobs", headers=bearer(made["key"])).json()["jobs"]
    assert {ours.ids["job_id"], ours.ids["pool_id"]} <= {job["id"] for job in jobs}
    assert theirs.ids["job_id"] not in {job["id"] for job in jobs}
    assert sqlite_guarded.client.get("/jobs", headers=theirs.headers(Scope.READ)).status_code == 200
