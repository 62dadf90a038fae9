"""Any request that the OpenAPI allows, and many that it does not: never a 500, and always our kind of error.

schemathesis makes them up; the seed is fixed and the examples are few, so that this takes seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from rebase.schemas.api_keys import Scope
from support.api import Api
from support.tenants import Household

EXAMPLES = 6
_STREAMS = frozenset({"/jobs/{job_id}/events"})  # a stream of a job that is not done goes on


@pytest.fixture(scope="module")
def guarded(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The app with keys; one for all examples."""
    home = tmp_path_factory.mktemp("any")
    (home / "rebase.db").write_bytes(sqlite_template.read_bytes())
    with Api.start(f"sqlite:///{home / 'rebase.db'}", home, auth="keys", host="0.0.0.0") as running:
        yield running


def _operations(api: Api) -> list[Any]:
    schema = schemathesis.openapi.from_dict(api.client.get("/openapi.json").json())
    return [result.ok() for result in schema.get_all_operations()]


def test_no_made_up_request_is_answered_with_a_500(guarded: Api) -> None:
    household = Household.make(guarded.store, "acme")
    operations = [one for one in _operations(guarded) if one.path not in _STREAMS]
    assert len(operations) >= 20
    tried: dict[str, set[int]] = {}

    def ask(case: Any) -> None:
        sent = case.as_transport_kwargs(base_url="http://127.0.0.1")
        if "data" in sent:
            sent["content"] = sent.pop("data")
        made = {**dict(sent["headers"]), **household.headers(Scope.ADMIN)}
        sent["headers"] = {name: str(value).encode("utf-8", "replace") for name, value in made.items()}
        answer = guarded.client.request(**{name: sent[name] for name in sent if name in _KNOWN})
        tried.setdefault(f"{case.operation.method} {case.operation.path}", set()).add(answer.status_code)
        assert answer.status_code < 500, (case.operation.label, sent, answer.text)
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/problem+json", answer.text
            assert json.loads(answer.text)["code"] != "internal"

    for operation in operations:
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            strategy = operation.as_strategy(generation_mode=mode)
            with suppress(Unsatisfiable) if mode.is_negative else nullcontext():  # nothing to get wrong
                _drive(strategy, ask)
    assert len(tried) == len(operations)
    accepted = [name for name, statuses in tried.items() if min(statuses) < 300]
    assert len(accepted) > len(operations) / 3, accepted


_KNOWN = {"method", "url", "headers", "params", "json", "content"}


def _drive(strategy: st.SearchStrategy[Any], ask: Any) -> None:
    @seed(20261126)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def run(case: Any) -> None:
        ask(case)

    run()
