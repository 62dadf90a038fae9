"""Whether this machine's dispatcher is alive. `python -m service.callbacks.health` exits 0 or 1."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rebase.settings import Settings, get_settings

_STALE_S = 30.0


def get_heartbeat_file(settings: Settings) -> Path:
    """The file that a running dispatcher touches regularly."""
    return settings.resolved_work_dir / "courier.alive"


def is_alive(settings: Settings, now: float) -> bool:
    """Whether the file was touched in the last half minute."""
    try:
        return now - get_heartbeat_file(settings).stat().st_mtime < _STALE_S
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    sys.exit(0 if is_alive(get_settings(), time.time()) else 1)
