"""What killed, cancelled and failed work has left in the work folder.

The samples and the state of a training stay there for whoever takes its job over, and a process that is
killed while one base reads leaves the other one's rows. Nobody comes back to them after days.
"""

from __future__ import annotations

import shutil
from pathlib import Path

MAX_AGE_S = 7 * 24 * 3600.0  # a training writes every minute, so nobody works with what is older


def remove_stale(work_dir: Path, now: float) -> None:
    """Remove what was not written to for a week at `now` (seconds since the epoch). Never raises for trouble
    with the disk."""
    for folder in (*work_dir.glob("training/*"), *work_dir.glob("rows-*")):
        if now - _get_last_modified(folder) > MAX_AGE_S:
            shutil.rmtree(folder, ignore_errors=True)


def _get_last_modified(folder: Path) -> float:
    times = []
    for path in (folder, *folder.glob("*")):
        try:
            times.append(path.stat().st_mtime)
        except OSError:  # gone meanwhile
            continue
    return max(times, default=float("inf"))
