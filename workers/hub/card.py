"""The metadata block on top of a model card: a stranger's YAML, read with care."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rebase.errors import escape_control_characters

CARD = "README.md"
_MOST_BYTES = 64 * 2**10  # of the card that are looked at; metadata stands on top
_MOST_TEXTS = 200  # of a list


def metadata_in(card: Path) -> dict[str, Any]:
    """The block as an object; empty for a card without one, or with one that is no YAML."""
    with card.open("rb") as stream:
        text = stream.read(_MOST_BYTES).decode(errors="replace").replace("\r\n", "\n")
    if not text.startswith("---\n"):
        return {}
    block, end, _ = text[4:].partition("\n---")
    try:
        found = yaml.safe_load(block) if end else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def licences_of(card: Mapping[str, Any]) -> tuple[str, ...]:
    """What `license` and `license_name` say, one or several."""
    return tuple(
        found[:100]
        for key in ("license", "license_name")
        for found in _texts(card.get(key))
        if found and found != "other"
    )


def tags_of(card: Mapping[str, Any]) -> tuple[str, ...]:
    """Its tags."""
    return tuple(tag[:100] for tag in _texts(card.get("tags")))


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [_line(one) for one in values[:_MOST_TEXTS] if isinstance(one, str | int | float)]


def _line(value: str | float) -> str:
    """On one line and printable: it is shown in JSON, which half a character cannot be part of, and on
    terminals, which obey control characters."""
    try:
        return escape_control_characters(" ".join(str(value).split()))
    except ValueError:  # a number with more digits than Python writes
        return ""
