"""The courier against receivers of every kind, over real sockets."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from rebase.schemas.callbacks import DeliveryState
from rebase.store.database import Database
from rebase.store.delivery_queue import LeaseLimits
from rebase.store.signing_secrets import SigningSecretRepository
from rebase.store.store import Store
from rebase.store.vault import Vault, generate_key
from service.callbacks.sender import MAX_BYTES
from support.callbacks import a_job, a_tenant, book_of, claimed, ended_job
from support.dispatchers import Names, a_sender, running_courier, until, until_settled
from support.receivers import (
    answers,
    dead_port,
    drips,
    huge_body,
    in_turn,
    never_answers,
    receiver,
    talks_nonsense,
)

TENANT = "default"


@pytest.fixture
def jobs(database_url: str) -> Iterator[Store]:
    """A job store that goes by the wall clock, as couriers do."""
    db = Database.open(database_url)
    yield Store(db)
    db.close()


@pytest.fixture
def vault() -> Vault:
    return Vault([generate_key()])


@pytest.fixture
def secret(jobs: Store, vault: Vault) -> str:
    return SigningSecretRepository(jobs.db).rotate(vault, TENANT, 3600)[1]


@pytest.fixture
def ending() -> Iterator[threading.Event]:
    """Set at the end, so that receivers that wait for ever do not."""
    event = threading.Event()
    yield event
    event.set()


def reasons(delivery: object) -> list[str | None]:
    return [attempt.reason for attempt in delivery.log]  # type: ignore[attr-defined]


def test_a_message_arrives_signed_and_is_delivered(jobs: Store, vault: Vault, secret: str) -> None:
    with receiver(answers(204)) as found, running_courier(jobs, vault, a_sender()):
        job_id = ended_job(jobs, f"{found.url}/a%20b?team=x&y=%2F")
        delivery = until_settled(jobs.db, job_id)
        (request,) = found.got

    assert delivery.state is DeliveryState.DELIVERED
    assert request.verified(secret) == delivery.payload
    assert request.id == delivery.id
    assert request.path == "/hook/a%20b?team=x&y=%2F"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["host"] == found.url.split("/")[2]
    assert "authorization" not in request.headers
    (attempt,) = delivery.log
    assert (attempt.number, attempt.status, attempt.reason) == (1, 204, None)
    assert attempt.duration_ms is not None


def test_a_work_folder_that_cannot_be_written_is_said_once_and_holds_nothing_up(
    jobs: Store, vault: Vault, secret: str, tmp_path: Path
) -> None:
    folder = tmp_path / "work"
    folder.touch()  # no folder, so that nothing can be made in it, by root neither
    alive = folder / "courier.alive"
    with (
        capture_logs() as said,
        receiver(answers(204)) as found,
        running_courier(jobs, vault, a_sender(), alive=alive),
    ):
        for _ in range(2):
            delivery = until_settled(jobs.db, ended_job(jobs, found.url))
            assert delivery.state is DeliveryState.DELIVERED
        folder.unlink()
        until(alive.exists)

    assert [line["log_level"] for line in said if line["event"] == "dispatcher_alive_file"] == ["warning"]


def test_both_secrets_of_a_rotation_verify(jobs: Store, vault: Vault, secret: str) -> None:
    _, new = SigningSecretRepository(jobs.db).rotate(vault, TENANT, 3600)
    with receiver(answers(200)) as found, running_courier(jobs, vault, a_sender()):
        ended_job(jobs, found.url)
        (request,) = found.wait()

    assert request.verified(secret) == request.verified(new)


def test_a_receiver_that_recovers_is_told_the_same_message_under_the_same_id(
    jobs: Store, vault: Vault, secret: str
) -> None:
    with (
        receiver(in_turn(answers(500), answers(503, {"Retry-After": "1"}), answers(200))) as found,
        running_courier(jobs, vault, a_sender()),
    ):
        delivery = until_settled(jobs.db, ended_job(jobs, found.url))
        first, second, third = found.got

    assert delivery.state is DeliveryState.DELIVERED
    assert [attempt.status for attempt in delivery.log] == [500, 503, 200]
    assert {request.id for request in (first, second, third)} == {delivery.id}
    assert first.body == third.body
    assert third.at - second.at >= 1  # it asked for a second
    assert third.verified(secret)
    assert third.headers["webhook-timestamp"] >= first.headers["webhook-timestamp"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_a_failure_and_is_never_followed(
    jobs: Store, vault: Vault, secret: str, status: int
) -> None:
    with (
        receiver(answers(200)) as elsewhere,
        receiver(answers(status, {"Location": elsewhere.url})) as found,
        running_courier(jobs, vault, a_sender()),
    ):
        delivery = until_settled(jobs.db, ended_job(jobs, found.url))

    assert delivery.state is DeliveryState.FAILED
    assert reasons(delivery) == ["redirect"] * 4
    assert (len(found.got), elsewhere.connections) == (4, 0)


def test_410_stops_that_url_until_a_replay(jobs: Store, vault: Vault, secret: str) -> None:
    with (
        receiver(in_turn(answers(410), answers(200))) as found,
        running_courier(jobs, vault, a_sender()),
    ):
        first = until_settled(jobs.db, ended_job(jobs, found.url))
        second = until_settled(jobs.db, ended_job(jobs, found.url))
        time.sleep(1)
        assert (first.state, second.state) == (DeliveryState.STOPPED, DeliveryState.STOPPED)
        assert (reasons(first), reasons(second), len(found.got)) == (["gone"], [], 1)

        book_of(jobs).replay(TENANT, second.id)
        again = until_settled(jobs.db, second.job_id)
        third = until_settled(jobs.db, ended_job(jobs, found.url))
    assert (again.state, third.state) == (DeliveryState.DELIVERED, DeliveryState.DELIVERED)
    assert [request.id for request in found.got] == [first.id, second.id, third.id]


def test_nobody_there_is_tried_to_the_end_of_the_schedule_and_given_up(
    jobs: Store, vault: Vault, secret: str
) -> None:
    with running_courier(jobs, vault, a_sender()):
        delivery = until_settled(jobs.db, ended_job(jobs, f"http://127.0.0.1:{dead_port()}/"))

    assert delivery.state is DeliveryState.FAILED
    assert reasons(delivery) == ["connect"] * 4
    assert all(attempt.status is None for attempt in delivery.log)
    assert delivery.next_at is None


def test_answers_that_never_end_are_cut_off_in_time(
    jobs: Store, vault: Vault, secret: str, ending: threading.Event
) -> None:
    with (
        receiver(never_answers(ending)) as silent,
        receiver(drips(ending)) as dripping,
        running_courier(jobs, vault, a_sender(timeout_s=0.6), waits=""),
    ):
        ids = [ended_job(jobs, url) for url in (silent.url, dripping.url)]
        found = [until_settled(jobs.db, job_id, 10) for job_id in ids]

    for delivery in found:
        assert (delivery.state, reasons(delivery)) == (DeliveryState.FAILED, ["timeout"])
        assert 500 <= (delivery.log[0].duration_ms or 0) <= 2500


def test_a_huge_answer_is_not_read_and_still_counts(jobs: Store, vault: Vault, secret: str) -> None:
    sent: list[int] = []
    with receiver(huge_body(sent)) as found, running_courier(jobs, vault, a_sender()):
        delivery = until_settled(jobs.db, ended_job(jobs, found.url))

    assert delivery.state is DeliveryState.DELIVERED
    assert sum(sent) < 64 * MAX_BYTES  # what lies in the sockets' buffers is sent, the rest is not


def test_nothing_of_an_answer_is_kept_but_its_status(jobs: Store, vault: Vault, secret: str) -> None:
    from support.callbacks import sql_text

    page = answers(500, {"X-Inside": "M0RE-S3CRET"}, b"S3CRET page of an internal host")
    with receiver(page) as found, running_courier(jobs, vault, a_sender(), waits=""):
        until_settled(jobs.db, ended_job(jobs, found.url))

    assert "S3CRET" not in sql_text(jobs.db)


def test_what_is_not_http_is_a_typed_failure(jobs: Store, vault: Vault, secret: str) -> None:
    with receiver(talks_nonsense) as found, running_courier(jobs, vault, a_sender(), waits=""):
        delivery = until_settled(jobs.db, ended_job(jobs, found.url))

    assert reasons(delivery) == ["protocol"]


def test_dead_receivers_delay_neither_other_receivers_nor_other_tenants(
    jobs: Store, vault: Vault, secret: str, ending: threading.Event
) -> None:
    a_tenant(jobs, "rival")
    SigningSecretRepository(jobs.db).rotate(vault, "rival", 0)
    bounds = LeaseLimits(per_endpoint=2, per_tenant=4, total=8)
    with receiver(never_answers(ending)) as dead, receiver(answers(200)) as alive:
        for _ in range(60):
            ended_job(jobs, dead.url)
        with running_courier(jobs, vault, a_sender(timeout_s=8), bounds=bounds):
            until(lambda: dead.connections >= 2)
            started = time.monotonic()
            for _ in range(10):
                ended_job(jobs, alive.url)
                ended_job(jobs, alive.url, "rival")
            alive.wait(20, 6)
            took = time.monotonic() - started
            assert dead.connections <= 2
            ending.set()

    assert took < 6, "a dead receiver holds an attempt for 8 s here"


def test_a_job_ends_as_fast_whatever_its_receiver_does(
    jobs: Store, vault: Vault, secret: str, ending: threading.Event
) -> None:
    def ending_takes(url: str) -> float:
        job_id = a_job(jobs, url)
        claim = claimed(jobs, job_id)
        started = time.monotonic()
        jobs.queue.succeed(claim, {})
        return time.monotonic() - started

    with (
        receiver(never_answers(ending)) as dead,
        receiver(answers(200)) as alive,
        running_courier(jobs, vault, a_sender(timeout_s=10)),
    ):
        slow = sorted(ending_takes(dead.url) for _ in range(15))
        fast = sorted(ending_takes(alive.url) for _ in range(15))
        ending.set()

    assert slow[7] < 1
    assert slow[7] < 20 * fast[7] + 0.1


def test_two_couriers_deliver_each_message_once(jobs: Store, vault: Vault, secret: str) -> None:
    with receiver(answers(200)) as found:
        ids = [ended_job(jobs, found.url) for _ in range(30)]
        with running_courier(jobs, vault, a_sender()), running_courier(jobs, vault, a_sender()):
            settled = [until_settled(jobs.db, job_id) for job_id in ids]

    assert {one.state for one in settled} == {DeliveryState.DELIVERED}
    assert sorted(request.id for request in found.got) == sorted(one.id for one in settled)


def test_a_secret_that_cannot_be_opened_is_a_failure_that_is_tried_again(
    jobs: Store, vault: Vault, secret: str
) -> None:
    with receiver(answers(200)) as found:
        job_id = ended_job(jobs, found.url)
        with running_courier(jobs, Vault([generate_key()]), a_sender(), waits="0.05"):
            delivery = until_settled(jobs.db, job_id)

    assert reasons(delivery) == ["no_secret", "no_secret"]
    assert found.connections == 0


# Where the name leads ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "addresses",
    [
        ["10.0.0.1"],
        ["8.8.8.8", "127.0.0.1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["2002:7f00:1::"],
        ["169.254.169.254"],
        ["fd00:ec2::254"],
    ],
)
def test_a_name_that_leads_to_our_own_side_is_refused_before_any_connection(
    jobs: Store, vault: Vault, secret: str, addresses: list[str]
) -> None:
    names = Names(hooks_acme_example=[addresses])
    with running_courier(jobs, vault, a_sender(names, allow=""), waits=""):
        delivery = until_settled(jobs.db, ended_job(jobs))

    assert reasons(delivery) == ["refused_address"]
    assert not any(address in str(delivery.log) for address in addresses)  # that would be a map of our names


def test_a_name_that_changes_its_mind_gains_nothing(jobs: Store, vault: Vault, secret: str) -> None:
    """DNS rebinding: public when it is checked, ours when somebody asks again. Nobody asks again."""
    with receiver(answers(200)) as ours:
        port = ours.url.rsplit(":", 1)[1].split("/")[0]
        # The first answer is a public address where nothing of ours listens; 192.0.2.0/24 is never routed.
        names = Names(hooks_acme_example=[["192.0.2.1"], ["127.0.0.1"]])
        sender = a_sender(names, allow="192.0.2.0/24", timeout_s=1.0)
        with running_courier(jobs, vault, sender, waits="0.05"):
            delivery = until_settled(jobs.db, ended_job(jobs, f"https://hooks.acme.example:{port}/"))

    assert names.asked == ["hooks.acme.example"] * 2  # once for each attempt
    assert reasons(delivery)[0] in {"connect", "timeout"}
    assert reasons(delivery)[1] == "refused_address"
    assert ours.connections == 0


def test_rules_are_asked_again_at_every_attempt(jobs: Store, vault: Vault, secret: str) -> None:
    """What was allowed when the job was submitted may be allowed no longer."""
    with receiver(answers(200)) as found, running_courier(jobs, vault, a_sender(allow=""), waits=""):
        delivery = until_settled(jobs.db, ended_job(jobs, found.url))

    assert reasons(delivery) == ["refused_url"]
    assert found.connections == 0


def test_a_name_that_does_not_resolve_is_a_typed_failure(jobs: Store, vault: Vault, secret: str) -> None:
    with running_courier(jobs, vault, a_sender(Names()), waits=""):
        assert reasons(until_settled(jobs.db, ended_job(jobs))) == ["dns"]


def test_proxies_of_the_environment_are_not_used(
    jobs: Store, vault: Vault, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiver(answers(200)) as proxy, receiver(answers(200)) as found:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url.rsplit("/", 1)[0])
        with running_courier(jobs, vault, a_sender()):
            until_settled(jobs.db, ended_job(jobs, found.url))

    assert (len(found.got), proxy.connections) == (1, 0)
