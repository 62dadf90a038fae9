"""Output of commands: results on stdout, everything else on stderr; with --json, stdout has exactly one JSON
document."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from rebase.errors import PublicError

_PIPE_COLUMNS = 200


class Output:
    """The output streams of one command. External text is never interpreted as markup."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.err = Console(stderr=True, highlight=False, soft_wrap=True)
        # A file or pipe has no width, so do not truncate tables there.
        width = None if sys.stdout.isatty() else _PIPE_COLUMNS
        self._out = Console(highlight=False, soft_wrap=True, width=width)

    def show(self, *renderables: RenderableType) -> None:
        """A result for people; silent with --json, whose document contains the same."""
        if not self.as_json:
            for renderable in renderables:
                self._out.print(Text(renderable) if isinstance(renderable, str) else renderable)

    def note(self, text: str, *, style: str = "") -> None:
        """Anything but the result: warnings, next steps."""
        self.err.print(Text(text, style=style))

    def write_json(self, value: Any) -> None:
        """The JSON document; silent without --json."""
        if self.as_json:
            sys.stdout.write(
                json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"
            )
            sys.stdout.flush()

    def error(self, error: PublicError) -> None:
        """An error: a message for people on stderr, a record for programs on stdout."""
        self.note(f"Error: {error.message}", style="bold red")
        if error.hint:
            self.note(f"  {error.hint}")
        self.write_json({"error": error.model_dump(mode="json")})

    @contextmanager
    def redirect_stdout(self) -> Iterator[None]:
        """Within the block, output of libraries to file descriptor 1 goes to stderr (with --json)."""
        if not self.as_json:
            yield
            return
        sys.stdout.flush()
        saved_fd = os.dup(1)
        os.dup2(2, 1)
        try:
            yield
        finally:
            sys.stdout.flush()
            os.dup2(saved_fd, 1)
            os.close(saved_fd)
