"""Worker liveness. `python -m workers.health` exits with 0 if the worker is alive, else 1."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from rebase.settings import Settings, get_settings

_TOUCH_INTERVAL_S = 5.0
_STALE_S = 30.0


def get_alive_file(settings: Settings) -> Path:
    """The file that a running worker touches regularly."""
    return settings.resolved_work_dir / "worker.alive"


def keep_alive(settings: Settings, stop: threading.Event, interval_s: float = _TOUCH_INTERVAL_S) -> None:
    """Touch the file every `interval_s` seconds until `stop`, then remove it. While that fails, for example
    on a full disk, the worker counts as dead."""
    path = get_alive_file(settings)
    while True:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        if stop.wait(interval_s):
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return


def is_alive(settings: Settings, now: float) -> bool:
    """Was the file touched within the last 30 seconds?"""
    try:
        return now - get_alive_file(settings).stat().st_mtime < _STALE_S
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(0 if is_alive(get_settings(), time.time()) else 1)
