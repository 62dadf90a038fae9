"""What every test may count on."""

from __future__ import annotations

import os
import signal

import structlog

# Fixtures that tests of several folders share.
pytest_plugins = ["support.databases", "support.commands", "support.worker_harness"]

# Before torch is imported, here and in programs that tests start. Tests run side by side; two threads that
# wait for each other on a busy core took four times as long as one. Sums come in one order on every machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure() -> None:
    """Ctrl-C reaches programs that tests start, also where the suite itself runs in the background.

    A shell starts background commands with SIGINT ignored, and every child would inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _plain_tracebacks()


def _plain_tracebacks() -> None:
    """As in production. Unconfigured, structlog draws each traceback with all local values around it: seconds
    for one line of log.
    """
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=False),
        ]
    )
