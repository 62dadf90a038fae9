"""Reads a repo's chat template as text; it is compared and copied here, never run."""

from __future__ import annotations

import json
from typing import Any

from rebase.errors import RebaseError
from rebase.hub.base import Hub, PinnedRepo
from rebase.models.safetensors_header import load_json_object

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
MAX_TEMPLATE_BYTES = 2**20  # published ones have up to 20 kB
MAX_TOKENIZER_CONFIG_BYTES = 16 * 2**20  # lists every added token, a few hundred bytes each


def read_chat_template(hub: Hub, repo: PinnedRepo) -> str | None:
    """The default template, from `chat_template.jinja`, `chat_template.json` or tokenizer_config.json in the
    order in which transformers looks. None if there is none, or none that is text of a reasonable size."""
    if repo.files.get(TEMPLATE_FILE, MAX_TEMPLATE_BYTES + 1) <= MAX_TEMPLATE_BYTES:
        try:
            return hub.fetch(repo, TEMPLATE_FILE).read_text(encoding="utf-8")
        except (RebaseError, UnicodeDecodeError):
            return None
    for path in ("chat_template.json", TOKENIZER_CONFIG_FILE):
        template = _find_default(_read_object(hub, repo, path).get("chat_template"))
        if template is not None:
            return template
    return None


def _find_default(value: Any) -> str | None:
    """A template, or the one named `default` in a list of several."""
    if isinstance(value, list):
        named = {row.get("name"): row.get("template") for row in value if isinstance(row, dict)}
        value = named.get("default")
    return value if isinstance(value, str) and len(value) <= MAX_TEMPLATE_BYTES else None


def _read_object(hub: Hub, repo: PinnedRepo, path: str) -> dict[str, Any]:
    """A JSON object of the repo; empty if it is missing, too large or no JSON."""
    if repo.files.get(path, MAX_TOKENIZER_CONFIG_BYTES + 1) > MAX_TOKENIZER_CONFIG_BYTES:
        return {}
    try:
        return load_json_object(
            hub.fetch(repo, path), f"'{path}' of {repo}", max_bytes=MAX_TOKENIZER_CONFIG_BYTES
        )
    except RebaseError:
        return {}


def read_tokenizer_config(hub: Hub, repo: PinnedRepo) -> str | None:
    """tokenizer_config.json without what would select code, as text; None if it cannot be read."""
    config = _read_object(hub, repo, TOKENIZER_CONFIG_FILE)
    if not config:
        return None
    config.pop("auto_map", None)
    return json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
