"""The `rebase` command. Imports stay light here: only commands that compute load torch."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_INTERRUPTED = 130  # the shell's convention


def main() -> None:
    """Entry point of the console script."""
    import warnings

    with exit_on_interrupt():
        from rebase.cli.app import run

    if not sys.warnoptions:  # warnings of libraries are for developers, not for users of this command
        warnings.simplefilter("ignore")
    raise SystemExit(run())


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Ctrl-C exits at once, with a message. For imports, which need no clean-up: during them
    KeyboardInterrupt may surface as another error, or abort the process."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        os.write(2, b"Interrupted.\n")
        os._exit(_INTERRUPTED)

    previous_handler = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous_handler)
