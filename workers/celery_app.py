"""The worker's Celery app, for `celery -A workers.celery_app worker` and `python -m workers`."""

from __future__ import annotations

import os
import threading
from typing import Any

from celery.signals import setup_logging, worker_process_init, worker_ready, worker_shutting_down

from rebase.logging import configure_logging
from rebase.settings import get_settings
from rebase.store.broker import make_celery
from workers.health import keep_alive

# huggingface_hub reads these at import. Tokens from the machine's own login must never be used.
os.environ.setdefault("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

app = make_celery(get_settings())
app.conf.imports = ("workers.tasks",)

_stop_event = threading.Event()


@setup_logging.connect(weak=False)
def _configure_logging(**_: Any) -> None:
    configure_logging(get_settings())


@worker_process_init.connect(weak=False)
def _configure_child(**_: Any) -> None:
    configure_logging(get_settings())


@worker_ready.connect(weak=False)
def _start_keep_alive(**_: Any) -> None:
    threading.Thread(target=keep_alive, args=(get_settings(), _stop_event), name="alive", daemon=True).start()


@worker_shutting_down.connect(weak=False)
def _stop_keep_alive(**_: Any) -> None:
    _stop_event.set()
