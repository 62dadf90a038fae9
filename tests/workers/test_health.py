"""The file by which a container's health check tells a living worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from rebase.settings import Settings
from workers.health import get_alive_file, is_alive, keep_alive


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_worker_whose_folder_cannot_be_written_is_alive_again_when_it_can(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, work_dir=tmp_path / "work")
    (tmp_path / "work").write_text("in the way of the folder")
    stop = threading.Event()
    thread = threading.Thread(target=keep_alive, args=(settings, stop, 0.01), daemon=True)
    thread.start()
    time.sleep(0.05)
    assert not is_alive(settings, time.time())

    (tmp_path / "work").unlink()
    until(lambda: is_alive(settings, time.time()))
    assert thread.is_alive()
    stop.set()
    thread.join(20)
    assert not get_alive_file(settings).exists()
