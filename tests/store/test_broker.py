"""The broker in a folder: what one process sends, another takes whole, once."""

from __future__ import annotations

import base64
import json
import multiprocessing
import time
from pathlib import Path
from queue import Empty

import pytest
from kombu import Connection
from kombu.exceptions import ChannelError

from rebase.settings import Settings
from rebase.store.broker import QUEUE, Channel, Transport, make_celery

BELLS = 600


def settings(home: Path) -> Settings:
    return Settings(_env_file=None, home=home)


def connection(home: Path) -> Connection:
    found: Connection = make_celery(settings(home)).connection_for_write()
    return found


def send(home: Path, first: int, count: int) -> None:
    with connection(home) as link, link.SimpleQueue(QUEUE) as queue:
        for number in range(first, first + count):
            queue.put({"bell": number})


@pytest.fixture
def channel(tmp_path: Path) -> Channel:
    found: Channel = connection(tmp_path).channel()
    return found


def test_the_embedded_deployment_uses_it(tmp_path: Path) -> None:
    assert connection(tmp_path).get_transport_cls() is Transport
    other = make_celery(Settings(_env_file=None, broker_url="redis://127.0.0.1:1/0")).connection_for_write()
    assert not issubclass(other.get_transport_cls(), Transport)


def test_nobody_takes_a_message_before_it_is_whole(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    def looked_at_meanwhile(payload: object) -> str:
        with pytest.raises(Empty):
            channel._get(QUEUE)
        return '{"bell": 1}'

    monkeypatch.setattr("rebase.store.broker.dumps", looked_at_meanwhile)
    channel._put(QUEUE, {"bell": 1})
    assert channel._get(QUEUE) == {"bell": 1}
    with pytest.raises(Empty):
        channel._get(QUEUE)


def test_two_senders_and_a_taker_lose_nothing_and_nobody_fails(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    senders = [context.Process(target=send, args=(tmp_path, at * BELLS, BELLS)) for at in range(2)]
    for sender in senders:
        sender.start()
    taken: list[int] = []
    deadline = time.monotonic() + 60
    with connection(tmp_path) as link:
        channel = link.channel()
        while len(taken) < 2 * BELLS and time.monotonic() < deadline:
            try:
                message = channel._get(QUEUE)
            except Empty:
                time.sleep(0.001)
                continue
            taken.append(json.loads(base64.b64decode(message["body"]))["bell"])
    for sender in senders:
        sender.join(20)
    assert [sender.exitcode for sender in senders] == [0, 0]
    assert sorted(taken) == list(range(2 * BELLS))


def test_a_table_that_is_being_written_is_looked_at_again_and_one_that_stays_broken_is_told(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    channel._queue_bind("bells", QUEUE, "", QUEUE)
    file = channel._exchange_file("bells")
    whole = file.read_text()

    def written_meanwhile(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            file.write_text(whole)

    monkeypatch.setattr("rebase.retry.time.sleep", written_meanwhile)
    file.write_text("")
    assert [entry.queue for entry in channel.get_table("bells")] == [QUEUE]
    assert len(waits) == 3

    file.write_text("[")
    with pytest.raises(ChannelError, match="bells"):
        channel.get_table("bells")


def test_a_folder_that_cannot_be_written_is_told_as_a_broker_tells_it(
    channel: Channel, tmp_path: Path
) -> None:
    channel.data_folder_out = str(tmp_path / "nowhere")
    with pytest.raises(ChannelError, match="Cannot add"):
        channel._put(QUEUE, {})
