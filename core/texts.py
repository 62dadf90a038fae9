"""What no text of a request may hold."""

from __future__ import annotations

from typing import Any


def reject_nul(value: Any) -> Any:
    """The body itself. Raises ValueError where one of its texts holds U+0000.

    PostgreSQL keeps JSON with that character and then refuses to look into it: the job could be neither
    claimed nor cancelled, and its tenant not be deleted. Not recursive, as a body may be nested deeply.
    """
    pending = [("", value)]
    while pending:
        path, item = pending.pop()
        if isinstance(item, str):
            if "\0" in item:
                raise ValueError(f"holds the character U+0000 at '{path[:200]}', which no text here may have")
        elif isinstance(item, dict):
            pending += [(f"{path}/{key}", inner) for key, inner in item.items()]
        elif isinstance(item, list | tuple):
            pending += [(f"{path}/{index}", inner) for index, inner in enumerate(item)]
    return value
