"""Reads the YAML metadata block at the top of a model card, which is untrusted input."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rebase.errors import FileMissing, escape_control_characters
from rebase.hub.base import Hub, PinnedRepo

_MAX_CARD_BYTES = 2**20  # long cards have some ten thousand bytes


def read_license(hub: Hub, repo: PinnedRepo) -> str | None:
    """The licence named in the repo's card, or None. A subfolder without one of its own has the repo's."""
    own = _read_license(hub, repo)
    return own if own is not None or repo.root is None else _read_license(hub, repo.root)


def _read_license(hub: Hub, repo: PinnedRepo) -> str | None:
    if not 0 < repo.files.get("README.md", 0) <= _MAX_CARD_BYTES:
        return None
    try:
        text = hub.fetch(repo, "README.md").read_text(encoding="utf-8", errors="replace")
    except FileMissing:
        return None
    if not text.startswith("---"):
        return None
    for line in text.split("---", 2)[1].splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "license" and value.strip():
            return value.strip().strip("\"'")[:100]
    return None


CARD_FILE = "README.md"
_MAX_METADATA_BYTES = 64 * 2**10  # bytes of the card to read; the metadata is at the top
_MAX_LIST_ITEMS = 200  # maximum items read from a list


def read_metadata(card: Path) -> dict[str, Any]:
    """The metadata block as a dict; empty if the card has none or it is not valid YAML."""
    with card.open("rb") as stream:
        text = stream.read(_MAX_METADATA_BYTES).decode(errors="replace").replace("\r\n", "\n")
    if not text.startswith("---\n"):
        return {}
    block, end, _ = text[4:].partition("\n---")
    try:
        metadata = yaml.safe_load(block) if end else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def get_licenses(card: Mapping[str, Any]) -> tuple[str, ...]:
    """The values of `license` and `license_name`, each one or several."""
    return tuple(
        text[:100]
        for key in ("license", "license_name")
        for text in _list_texts(card.get(key))
        if text and text != "other"
    )


def get_tags(card: Mapping[str, Any]) -> tuple[str, ...]:
    """The card's tags."""
    return tuple(tag[:100] for tag in _list_texts(card.get("tags")))


def _list_texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [_to_single_line(item) for item in values[:_MAX_LIST_ITEMS] if isinstance(item, str | int | float)]


def _to_single_line(value: str | float) -> str:
    """One printable line: the text is shown in JSON, which cannot contain lone surrogates, and on terminals,
    which interpret control characters."""
    try:
        return escape_control_characters(" ".join(str(value).split()))
    except ValueError:  # a number with more digits than Python writes
        return ""
