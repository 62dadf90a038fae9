"""JSON from strangers: UTF-8 objects without duplicate keys, NaN, half characters or bottomless nesting."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from rebase.errors import HubUnavailable, UnsafeFile


class InvalidJson(ValueError):
    """The text is not what is accepted here; the message says why in a few words."""


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`. Raises InvalidJson."""
    try:
        text = raw.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as exc:
        raise InvalidJson("it is not UTF-8") from exc
    except RecursionError as exc:
        raise InvalidJson("it is nested too deeply") from exc
    except InvalidJson:
        raise
    except ValueError as exc:  # includes numbers with thousands of digits
        raise InvalidJson("it is not JSON") from exc
    if not isinstance(value, dict):
        raise InvalidJson("it is not a JSON object")
    return value


def load_object(path: Path, name: str, *, max_bytes: int) -> dict[str, Any]:
    """The JSON object in a file that errors call `name`. UnsafeFile when it is too large or not
    acceptable.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(max_bytes + 1)
    except OSError as exc:
        raise HubUnavailable(f"{name} cannot be read.") from exc
    if len(raw) > max_bytes:
        raise UnsafeFile(f"{name} is larger than {max_bytes} bytes, which no file of its kind needs.")
    try:
        return parse_object(raw)
    except InvalidJson as exc:
        raise UnsafeFile(
            f"{name} cannot be used: {exc}.", hint="Correct the file and upload it again."
        ) from exc


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of pairs whose keys differ and can be written down again."""
    result = dict(pairs)
    if len(result) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise InvalidJson(f"the key {twice[:200]!r} stands in it twice")
    if not all(key.isascii() or _encodable(key) for key in result):
        raise InvalidJson("a key holds half a character")
    return result


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _no_constant(constant: str) -> NoReturn:
    raise InvalidJson(f"{constant} is not JSON")
