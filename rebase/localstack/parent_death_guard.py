"""`python -m rebase.localstack.parent_death_guard FD GRACE_S COMMAND…`: a command that cannot outlive its
supervisor.

FD is the read end of a pipe whose write end only the supervisor holds, so end-of-file means that the
supervisor is gone, even after SIGKILL, and on any Unix. Then, or on SIGTERM, the guard asks COMMAND to stop,
and GRACE_S seconds later kills what is left. COMMAND leads its own process group, so that everything it
started, and nothing else, is stopped with it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from types import FrameType


def main(arguments: list[str]) -> int:
    """Exit status of the command; 128 + signal number if a signal ended it."""
    lifeline, grace_s, command = int(arguments[0]), float(arguments[1]), arguments[2:]
    stop_requested = False

    def on_stop_signal(_number: int, _frame: FrameType | None) -> None:
        nonlocal stop_requested
        stop_requested = True

    # Every signal, including SIGCHLD, writes a byte to this pipe, so that one select waits for everything.
    wakeup_read, wakeup_write = os.pipe()
    os.set_blocking(wakeup_write, False)
    signal.set_wakeup_fd(wakeup_write)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.signal(signal.SIGTERM, on_stop_signal)
    signal.signal(signal.SIGINT, on_stop_signal)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603
    while child.poll() is None and not stop_requested:
        readable, _, _ = select.select([lifeline, wakeup_read], [], [])
        if wakeup_read in readable:
            os.read(wakeup_read, 64)
        stop_requested = stop_requested or lifeline in readable
    if child.poll() is None:
        child.terminate()
        deadline = time.monotonic() + grace_s
        while child.poll() is None and (remaining := deadline - time.monotonic()) > 0:
            if select.select([wakeup_read], [], [], remaining)[0]:
                os.read(wakeup_read, 64)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    status = child.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
