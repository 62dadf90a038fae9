"""What no text of a request may hold."""

from __future__ import annotations

from typing import Any


def refuse_nul(value: Any) -> Any:
    """The body itself. Raises ValueError where one of its texts holds U+0000.

    PostgreSQL keeps JSON with that character and then refuses to look into it: the job could be neither
    claimed nor cancelled, and its tenant not be deleted. Not recursive, as a body may be nested deeply.
    """
    pending = [("", value)]
    while pending:
        path, here = pending.pop()
        if isinstance(here, str):
            if "\0" in here:
                raise ValueError(f"holds the character U+0000 at '{path[:200]}', which no text here may have")
        elif isinstance(here, dict):
            pending += [(f"{path}/{key}", inner) for key, inner in here.items()]
        elif isinstance(here, list | tuple):
            pending += [(f"{path}/{place}", inner) for place, inner in enumerate(here)]
    return value
