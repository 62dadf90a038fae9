"""One supervised process: runs under a guard, logs to a file, and is restarted with exponential back-off."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

GRACE_S = 8.0
_MAX_LOG_BYTES = 10 * 2**20
_MIN_DELAY_S = 0.5
_MAX_DELAY_S = 30.0
# A process that ran this long was healthy; its next exit resets the back-off.
_HEALTHY_S = 60.0


class SupervisedProcess:
    """A command that should keep running. Only `stop` blocks, and only for a limited time.

    `grace_s`: seconds between SIGTERM and SIGKILL.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        log: Path,
        *,
        grace_s: float = GRACE_S,
    ) -> None:
        self.name = name
        self.log = log
        self.restarts = 0
        self._command = list(command)
        self._env = dict(env)
        self._grace_s = grace_s
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None
        self._started_at = 0.0
        self._restart_at = 0.0

    def start(self) -> None:
        """Start the command under its guard, which holds one end of a pipe that closes when we exit."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > _MAX_LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        read_fd, write_fd = os.pipe()
        guard = [
            sys.executable,
            "-m",
            "rebase.localstack.parent_death_guard",
            str(read_fd),
            f"{self._grace_s}",
        ]
        try:
            with self.log.open("ab") as sink:
                # A separate session: Ctrl-C in the terminal reaches only the supervisor, which then stops
                # us in order.
                self._process = subprocess.Popen(  # noqa: S603
                    [*guard, *self._command],
                    env=self._env,
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    pass_fds=[read_fd],
                    start_new_session=True,
                )
        except BaseException:
            os.close(write_fd)
            raise
        finally:
            os.close(read_fd)
        self._lifeline = write_fd
        self._started_at = time.monotonic()

    @property
    def exit_status(self) -> int | None:
        """None while it is running."""
        return self._process.poll() if self._process is not None else None

    def restart_if_due(self) -> int | None:
        """Restart it if it has exited and its back-off is over. Returns its exit status, once per exit."""
        status = self.exit_status
        if status is None:
            return None
        now = time.monotonic()
        if self._lifeline is not None:
            self._close_lifeline()
            self.restarts = 1 if now - self._started_at > _HEALTHY_S else self.restarts + 1
            self._restart_at = now + min(_MIN_DELAY_S * 2 ** (self.restarts - 1), _MAX_DELAY_S)
            return status
        if now >= self._restart_at:
            self.start()
        return None

    def request_stop(self) -> None:
        """Send SIGTERM to the guard; `stop` waits for the exit."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> None:
        """Stop it for good. The guard kills it after `grace_s`; a guard that hangs is killed soon after."""
        self.request_stop()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self._grace_s + 2)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        self._close_lifeline()

    def read_log_tail(self, lines: int = 12) -> str:
        """The last lines of its log file."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])
        return ""

    def _close_lifeline(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
