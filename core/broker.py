"""The doorbell: a Celery app that both sides configure alike, and one message that carries a job id.

The worker's task lives in `workers.tasks`; the sender knows its name only, so the API never imports it.
"""

from __future__ import annotations

from typing import Any

from celery import Celery

from core.settings import Settings

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
        transport_class = "core.folder_broker:Transport"
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
