"""`rebase callbacks` against a running service."""

from __future__ import annotations

import json

import pytest

from rebase.schemas.callbacks import DeliveryState
from rebase.store.store import Store
from support.callbacks import queue_of, settle
from support.command import Command
from support.running_service import RunningService

URL = "https://hooks.acme.example/rebase"
CONVERT = ["convert", "acme/sql-lora", "--target", "acme/base-2"]


@pytest.fixture
def secret(rebase: Command, at_service: RunningService) -> str:
    done = rebase("callbacks", "secret", "--rotate", "--json")
    assert done.code == 0, done.err
    value: str = json.loads(done.out)["secret"]
    return value


def delivery_of(rebase: Command, store: Store) -> str:
    """A cancelled job's delivery."""
    job_id = json.loads(rebase(*CONVERT, "--set", f"callback.url={URL}", "--json").out)["id"]
    store.jobs.cancel("default", job_id)
    done = rebase("callbacks", "ls", "--job", job_id, "--json")
    (delivery,) = json.loads(done.out)["deliveries"]
    assert delivery["event"] == "job.cancelled"
    value: str = delivery["id"]
    return value


def test_a_secret_is_printed_when_it_is_made_and_replaced_only_on_request(
    rebase: Command, at_service: RunningService, secret: str
) -> None:
    assert secret.startswith("whsec_")
    again = rebase("callbacks", "secret")
    assert again.code == 1
    assert "--rotate creates a new one" in again.err
    assert secret not in again.out + again.err

    new = rebase("callbacks", "secret", "--rotate", "--overlap", "600")
    assert new.code == 0
    assert new.out.strip().startswith("whsec_")
    assert new.out.strip() != secret
    assert "keeps signing until" in new.err


def test_deliveries_are_listed_shown_and_replayed(
    rebase: Command, at_service: RunningService, secret: str
) -> None:
    store = at_service.store
    delivery = delivery_of(rebase, store)
    queue = queue_of(store)
    for taken in queue.lease("courier", 60):
        settle(queue, taken, DeliveryState.FAILED, 502)

    listed = rebase("callbacks", "ls", "--state", "failed")
    assert delivery in listed.out
    assert "502" in listed.out
    shown = rebase("callbacks", "show", delivery)
    assert "job.cancelled" in shown.out
    assert "try 1" in shown.out
    replayed = json.loads(rebase("callbacks", "replay", delivery, "--json").out)
    assert (replayed["id"], replayed["state"]) == (delivery, "pending")
    unknown = rebase("callbacks", "replay", "0" * 32)
    assert unknown.code == 1
    assert "no such delivery" in unknown.err


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("callback.url=http://hooks.acme.example/", "only sent over https"),
        ("callback.url=https://10.0.0.1/", "10.0.0.1 is private"),
        ("callback.url=https://a:b@hooks.acme.example/", "user name or password"),
        ("callback.urls=https://a.example/", "callback.url"),
    ],
)
def test_a_receiver_that_cannot_be_is_a_usage_error(
    rebase: Command, at_service: RunningService, secret: str, setting: str, said: str
) -> None:
    done = rebase(*CONVERT, "--set", setting)
    assert done.code == 2
    assert said in done.err
    assert "callback" in done.err


def test_a_conversion_without_a_service_has_nobody_to_call_back(rebase: Command, tmp_path: object) -> None:
    done = rebase(
        "transfer", "acme/sql-lora", "--target", "acme/base-2", "--out", f"{tmp_path}/out",
        "--set", f"callback.url={URL}",
    )  # fmt: skip
    assert done.code == 2
    assert "cannot send callbacks" in done.err
