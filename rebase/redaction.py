"""Detects and redacts secrets in text and values: the last line of defence after never logging them."""

from __future__ import annotations

import re
from typing import Any

REDACTED = "[redacted]"
SECRET_NAMES = frozenset(
    {
        "authorization",
        "token",
        "hub_token",
        "x-hub-token",
        "x-webhook-secret",
        "api_key",
        "key",
        "password",
        "secret",
        "secret_keys",
        "sealed",
        "cookie",
    }
)
# Hub tokens, our own keys, signing secrets, bearer values, and user:password in a URL. In logs, names that
# merely look like a token are redacted too; error messages must be able to name the user's repos, so there
# only strings as long as a real token are redacted (34 characters after hf_, 43 after rb_).
_SECRET_PATTERNS = re.compile(
    r"\b(?:rb|hf)_[A-Za-z0-9_-]{8,}"
    r"|\bwhsec_[A-Za-z0-9+/=_-]{8,}"
    r"|(?<=\bBearer )[A-Za-z0-9._~+/=-]{8,}"
    r"|(?<=://)[^/@\s:]*:[^/@\s]+(?=@)"
)
_LONG_SECRET_PATTERNS = re.compile(
    r"\b(?:rb|hf)_[A-Za-z0-9_-]{30,}|\bwhsec_[A-Za-z0-9+/=_-]{20,}|(?<=://)[^/@\s:]*:[^/@\s]+(?=@)"
)


def scrub(text: str) -> str:
    """`text` with everything that looks like a secret redacted."""
    return _SECRET_PATTERNS.sub(REDACTED, text)


def scrub_long_secrets(text: str) -> str:
    """The same for messages to users: redacts only what is as long as a real secret."""
    return _LONG_SECRET_PATTERNS.sub(REDACTED, text)


def scrub_value(value: Any) -> Any:
    """Scrub recursively inside lists and mappings, and redact mapping values whose key is in `SECRET_NAMES`.
    Other objects become their scrubbed string, as a log would write it."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, dict):
        return {
            name: REDACTED if str(name).lower() in SECRET_NAMES else scrub_value(inner)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [scrub_value(inner) for inner in value]
    return scrub(str(value))
