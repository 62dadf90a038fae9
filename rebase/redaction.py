"""What a secret looks like, wherever it stands: the last line of defence, behind never writing one down."""

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
# Hub tokens, our own keys, signing secrets, bearer values, and user:password in an address. In logs a name
# that only looks like a token is blanked too; an error has to name the reader's own repos, so that there only
# what is as long as a real token is taken for one (34 characters behind hf_, 43 behind rb_).
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
    """`text` with everything that has the shape of a secret blanked."""
    return _SECRET_PATTERNS.sub(REDACTED, text)


def scrub_long_secrets(text: str) -> str:
    """The same for sentences to users: only what is as long as a real secret."""
    return _LONG_SECRET_PATTERNS.sub(REDACTED, text)


def scrub_value(value: Any) -> Any:
    """The same inside lists and mappings; mappings also by the names in `NAMES`. What is no plain value
    becomes its scrubbed text, as a log would write it."""
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
