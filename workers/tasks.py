"""The only Celery task: a notification that carries a job id."""

from __future__ import annotations

import os
import socket
from functools import lru_cache
from typing import TYPE_CHECKING

from rebase.settings import get_settings
from rebase.store.broker import TASK_NAME
from rebase.store.database import Database
from rebase.store.limits import Limits
from rebase.store.store import Store
from workers.celery_app import app

if TYPE_CHECKING:
    from workers.runner import WorkerContext


@lru_cache(maxsize=1)
def get_worker_context() -> WorkerContext:
    """Created in the child process on its first job.

    The imports wait until then: Celery gives a new child four seconds to report, and the tensor libraries
    take longer than that to load; the parent never needs them.
    """
    from rebase.runtime import make_runtime
    from workers.runner import WorkerContext

    settings = get_settings()
    return WorkerContext(
        settings=settings,
        store=Store(
            Database.open(settings.resolved_database_url),
            max_attempts=settings.max_attempts,
            limits=Limits.from_settings(settings),
        ),
        runtime=make_runtime(settings),
        lease_owner=f"{socket.gethostname()}:{os.getpid()}",
    )


@app.task(name=TASK_NAME, ignore_result=True)
def run_job_task(job_id: str) -> None:
    """Run the job if it is queued. Never raises: the outcome is in the job's row."""
    from workers.runner import run_job

    run_job(job_id, get_worker_context())
