"""Pinned to an address, yet the certificate must be the name's; and names that never resolve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from rebase.errors import SettingsInvalid
from service.callbacks.sender import Attempt, FailureReason, make_tls_context
from support.certificates import Authority
from support.dispatchers import Names, a_sender
from support.receivers import answers, receiver


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def send(port_of: str, host: str, authority: Authority | None) -> Attempt:
    """POST to `host`, which resolves to this machine."""
    names = Names(**{host.replace(".", "_"): [["127.0.0.1"]]})
    sender = a_sender(names, ca_file=authority.file if authority is not None else None)
    port = port_of.rsplit(":", 1)[1].split("/")[0]
    return asyncio.run(sender.send(f"https://{host}:{port}/hook", {"X-Test": "1"}, b"{}"))


def test_the_name_is_asked_for_and_its_certificate_is_accepted(authority: Authority) -> None:
    asked: list[str | None] = []
    tls = authority.server("hooks.acme.example", asked.append)
    with receiver(answers(200), tls) as found:
        attempt = send(found.url, "hooks.acme.example", authority)
        (request,) = found.got

    assert (attempt.result.status, attempt.result.reason) == (200, None)
    assert asked == ["hooks.acme.example"]
    assert request.headers["host"].startswith("hooks.acme.example:")


def test_a_certificate_of_another_name_is_refused_before_anything_is_sent(authority: Authority) -> None:
    with receiver(answers(200), authority.server("other.acme.example")) as found:
        attempt = send(found.url, "hooks.acme.example", authority)

    assert attempt.result.reason is FailureReason.TLS
    assert "certificate is not valid for this name" in str(attempt.result.detail)
    assert found.got == []


def test_an_authority_that_nobody_vouches_for_is_refused(authority: Authority) -> None:
    with receiver(answers(200), authority.server("hooks.acme.example")) as found:
        attempt = send(found.url, "hooks.acme.example", None)

    assert attempt.result.reason is FailureReason.TLS
    assert found.got == []


def test_plain_http_where_tls_is_meant_is_a_failure_of_tls() -> None:
    with receiver(answers(200)) as found:
        attempt = send(found.url, "hooks.acme.example", None)

    assert attempt.result.reason is FailureReason.TLS
    assert found.got == []


def test_a_file_that_holds_no_certificates_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("none")
    for path in (tmp_path / "ca.pem", tmp_path / "missing.pem"):
        with pytest.raises(SettingsInvalid, match="REBASE_CALLBACK_CA_FILE"):
            make_tls_context(path)


def test_a_name_server_that_never_answers_costs_no_more_than_its_time_and_is_waited_for() -> None:
    """The look-up itself cannot be cancelled; whoever sends next must know that it still holds a thread."""

    async def stuck(_host: str, _port: int) -> Sequence[str]:
        await asyncio.sleep(1.5)
        return ["127.0.0.1"]

    async def scene() -> None:
        started = time.monotonic()
        attempt = await a_sender(stuck, timeout_s=0.3).send("https://hooks.acme.example/", {}, b"{}")
        assert time.monotonic() - started < 1
        assert attempt.result.reason is FailureReason.TIMEOUT
        assert attempt.lookup is not None
        assert not attempt.lookup.done()
        await asyncio.wait([attempt.lookup])

    asyncio.run(scene())


def test_the_next_address_is_tried_when_nobody_answers_at_the_first() -> None:
    with receiver(answers(200)) as found:
        port = found.url.rsplit(":", 1)[1].split("/")[0]
        names = Names(receiver=[["127.0.0.9", "127.0.0.1"]])
        sender = a_sender(names, allow="receiver")
        attempt = asyncio.run(sender.send(f"http://receiver:{port}/", {}, b"{}"))

    assert attempt.result.status == 200
    assert names.asked == ["receiver"]
