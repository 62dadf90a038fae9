"""The Celery app and its notifications, and a fixed file-system transport for the embedded deployment.

Kombu creates a message's file under its final name and fills it afterwards. A worker that reads in between
gets an empty message, fails to parse it and exits. Here a file gets its final name once it is complete. The
queue table is still written in place, so a reader that finds it empty retries.
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
    """A file-system channel whose messages appear atomically."""

    def _put(self, queue: str, payload: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Put one message on the queue. Raises ChannelError when the folder is not writable."""
        folder = Path(self.data_folder_out)
        # Readers process file names in order and ignore those without the queue's suffix.
        name = f"{round(time.monotonic() * 1000)}_{uuid.uuid4()}.{queue}.msg"
        draft = folder / f"{name}.draft"
        try:
            draft.write_bytes(dumps(payload).encode())  # type: ignore[no-untyped-call]
            draft.replace(folder / name)
        except OSError as exc:
            raise ChannelError(f"Cannot add file '{name}' to the message folder") from exc

    def get_table(self, exchange: str) -> list[Any]:
        """The queues bound to an exchange; empty if there are none yet. Raises ChannelError."""

        def read() -> list[Any]:
            table: list[Any] = super(Channel, self).get_table(exchange)  # type: ignore[no-untyped-call]
            return table

        try:  # an empty table is being written by another process
            return retry(read, ValueError, Backoff(_READ_PAUSE_S, factor=1.0), attempts=_MAX_READS)
        except ValueError as exc:
            raise ChannelError(f"The bindings of the exchange '{exchange}' cannot be read") from exc


class Transport(filesystem.Transport):
    """The transport that Celery uses for `filesystem://`."""

    Channel = Channel


# Notifications: both sides configure the same Celery app, and a message carries one job id. The worker's
# task lives in `workers.tasks`; the sender knows only its name, so the API never imports it.

TASK_NAME = "rebase.ring"
QUEUE = "rebase"


def make_celery(settings: Settings) -> Celery:
    """The Celery app for this deployment's broker. No result backend: SQL is the source of truth."""
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
            "polling_interval": 0.2,  # seconds; the default of 1 s is half the run time of a small job
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
    """The app of a process that only sends. It fails fast, because callers retry by themselves.

    By default each notification would retry a refused connection for six seconds.
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
    """Put one notification on the queue. Raises the transport's errors; the caller retries."""
    app.send_task(TASK_NAME, args=[job_id], queue=QUEUE, ignore_result=True, retry=False)
