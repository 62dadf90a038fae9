"""The `rebase` command. Imports stay light here: torch is loaded by the commands that compute, and by no
other."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_INTERRUPTED = 130  # the shell's own convention


def main() -> None:
    """Entry point of the console script."""
    import warnings

    with exit_on_interrupt():
        from rebase.cli.app import run

    if not sys.warnoptions:  # what libraries tell their developers is no business of this command's users
        warnings.simplefilter("ignore")
    raise SystemExit(run())


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Ctrl-C ends the process on the spot, with a word. For imports, which leave nothing to tidy up: within
    them KeyboardInterrupt may come out as another error, or abort the process."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        os.write(2, b"Interrupted.\n")
        os._exit(_INTERRUPTED)

    previous_handler = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous_handler)
