"""A command line and what it left behind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

REBASE = [sys.executable, "-m", "rebase"]


@dataclass(frozen=True)
class Done:
    """Exit code, stdout, stderr."""

    code: int
    out: str
    err: str


Command = Callable[..., Done]
