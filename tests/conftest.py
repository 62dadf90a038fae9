"""What every test may count on."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Ctrl-C reaches programs that tests start, also where the suite itself runs in the background.

    A shell starts background commands with SIGINT ignored, and every child would inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
