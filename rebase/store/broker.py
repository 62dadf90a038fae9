"""Kombu's broker in a folder, for the embedded deployment, without its race between writer and reader.

Kombu creates a message's file under its final name and fills it afterwards. A worker that looks in between
takes an empty message, fails to read it and ends. Here a file has its name when it is whole. The table of
queues is written in place, so whoever finds it empty looks again.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

from celery import Celery
from kombu.exceptions import ChannelError
from kombu.transport import filesystem
from kombu.utils.json import dumps

from rebase.retry import Backoff, retry
from rebase.settings import Settings

_MAX_READS = 100
_READ_PAUSE_S = 0.01


class Channel(filesystem.Channel):
    """Messages come into sight whole."""

    def _put(self, queue: str, payload: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Put one message onto the queue. Raises ChannelError when the folder cannot be written."""
        folder = Path(self.data_folder_out)
        # Readers take names in their order, and only those that end in the queue's.
        name = f"{round(time.monotonic() * 1000)}_{uuid.uuid4()}.{queue}.msg"
        draft = folder / f"{name}.draft"
        try:
            draft.write_bytes(dumps(payload).encode())  # type: ignore[no-untyped-call]
            draft.replace(folder / name)
        except OSError as exc:
            raise ChannelError(f"Cannot add file '{name}' to the folder of messages") from exc

    def get_table(self, exchange: str) -> list[Any]:
        """The queues of an exchange; empty where it has none yet."""

        def read() -> list[Any]:
            table: list[Any] = super(Channel, self).get_table(exchange)  # type: ignore[no-untyped-call]
            return table

        try:  # a table without its content is one that another process is about to write
            return retry(read, ValueError, Backoff(_READ_PAUSE_S, factor=1.0), attempts=_MAX_READS)
        except ValueError as exc:
            raise ChannelError(f"The table of the exchange '{exchange}' cannot be read") from exc


class Transport(filesystem.Transport):
    """What Celery is given for `filesystem://`."""

    Channel = Channel


# The doorbell: a Celery app that both sides configure alike, and one message that carries a
# job id. The worker's task lives in `workers.tasks`; the sender knows its name only, so the API
# never imports it.

TASK_NAME = "rebase.ring"
QUEUE = "rebase"


def make_celery(settings: Settings) -> Celery:
    """An app for this deployment's broker. No result backend: SQL is the truth."""
    app = Celery("rebase")
    url = settings.resolved_broker_url
    transport: dict[str, Any] = {"socket_timeout": 10, "socket_connect_timeout": 5}
    transport_class: str | None = None
    if url.startswith("filesystem:"):
        folder = settings.broker_dir
        for name in ("messages", "control"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        transport_class = "rebase.store.broker:Transport"
        transport = {
            "data_folder_in": str(folder / "messages"),
            "data_folder_out": str(folder / "messages"),
            "control_folder": str(folder / "control"),
            "polling_interval": 0.2,  # seconds; the default second is half of a small job's time
        }
    app.conf.update(
        broker_url=url,
        broker_transport=transport_class,
        broker_transport_options=transport,
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=5,
        task_default_queue=QUEUE,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=not url.startswith("filesystem:"),
        worker_pool="prefork",
        worker_concurrency=1,
        worker_pool_start_method="spawn",
        worker_max_tasks_per_child=50,
        worker_hijack_root_logger=False,
        task_soft_time_limit=settings.soft_time_limit_s,
        task_time_limit=settings.resolved_hard_time_limit_s,
        task_serializer="json",
        accept_content=["json"],
        event_queue_ttl=5,
    )
    return app


def make_sender(settings: Settings) -> Celery:
    """The app of a process that only rings: it gives up at once, because whoever rings tries again by itself.

    Without this a refused connection is tried for six seconds, per bell.
    """
    app = make_celery(settings)
    app.conf.broker_transport_options |= {
        "max_retries": 0,
        "interval_start": 0,
        "interval_step": 0,
        "interval_max": 0,
    }
    return app


def send_notification(app: Celery, job_id: str) -> None:
    """Put one doorbell message on the queue. Raises what the transport raises; the caller tries again."""
    app.send_task(TASK_NAME, args=[job_id], queue=QUEUE, ignore_result=True, retry=False)
