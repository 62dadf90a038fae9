"""The metadata block on top of a model card: a stranger's YAML, read with care."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CARD = "README.md"
_MOST_BYTES = 64 * 2**10  # of the card that are looked at; metadata stands on top
_MOST_TAGS = 200


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
    return tuple(tag[:100] for tag in _texts(card.get("tags"))[:_MOST_TAGS])


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [str(one).strip() for one in values if isinstance(one, str | int | float)]
