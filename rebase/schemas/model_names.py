"""Which repos a subscription matches: a name pattern within one owner, or the successors of a base.

Names are compared case-insensitively, as the Hub does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rebase.schemas.repos import check_repo_id

_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.*?-]+", re.ASCII)
_WORD_SEPARATOR = re.compile(r"[-_]+")
_SIZE = re.compile(r"(?:\d+x)?\d+(?:\.\d+)?[bmkt]", re.ASCII)  # 8b, 135m, 4k, 8x7b: a size, not a version
_VERSION = re.compile(r"(?P<family>[a-z]*?)v?(?P<version>\d+(?:\.\d+)*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """Family and version from a name: `qwen2.5-7b-instruct` is version (2, 5) of the family `qwen`. A name
    without a version has version ()."""

    family: str
    version: tuple[int, ...]


def check_pattern(pattern: str) -> str:
    """Check a pattern `owner/name`, whose name may contain `*` and `?`. Raises ValueError."""
    if len(pattern) > 200 or not _PATTERN.fullmatch(pattern):
        raise ValueError("must be 'owner/name', where the name (and not the owner) may hold * and ?")
    return pattern


def get_owner(repo_id: str) -> str:
    """The owner, lower-cased for look-ups; empty for a name without owner."""
    return repo_id.rpartition("/")[0].casefold()


def matches_pattern(pattern: str, repo_id: str) -> bool:
    """Whether the repo id matches. `*` matches any characters of the name, `?` exactly one."""
    owner, _, name = pattern.casefold().partition("/")
    repo_owner, _, text = repo_id.casefold().partition("/")
    return owner == repo_owner and _glob_matches(name, text)


def _glob_matches(pattern: str, text: str) -> bool:
    """Greedy matching that backtracks to the last star only: at worst the product of both lengths, whatever
    the pattern."""
    pattern_index = star_index = 0
    text_index, star_text_index = 0, -1
    while text_index < len(text):
        if (
            pattern_index < len(pattern)
            and pattern[pattern_index] in ("?", text[text_index])
            and pattern[pattern_index] != "*"
        ):
            pattern_index, text_index = pattern_index + 1, text_index + 1
        elif pattern_index < len(pattern) and pattern[pattern_index] == "*":
            star_index, star_text_index, pattern_index = pattern_index, text_index, pattern_index + 1
        elif star_text_index >= 0:
            star_text_index += 1
            pattern_index, text_index = star_index + 1, star_text_index
        else:
            return False
    return all(char == "*" for char in pattern[pattern_index:])


def parse_model_version(repo_id: str) -> ModelVersion:
    """Family and version, from the name alone.

    The name is split into words at '-' and '_'. Sizes (8B, 135M, 4k) are skipped. The first word with a
    number contains the version; its letters before the number belong to the family, as do the words before
    it. Everything after it is a variant and ignored.
    """
    words = [word for word in _WORD_SEPARATOR.split(repo_id.rpartition("/")[2].casefold()) if word]
    family: list[str] = []
    for word in (word for word in words if not _SIZE.fullmatch(word)):
        match = _VERSION.match(word)
        if match is not None:
            family += [match["family"]] if match["family"] else []
            return ModelVersion("-".join(family), _parse_version(match["version"]))
        family.append(word)
    return ModelVersion("-".join(family), ())


def is_successor(repo_id: str, base: str) -> bool:
    """Whether the repo is a later version of the base: same owner, same family, higher version."""
    if get_owner(repo_id) != get_owner(base):
        return False
    new, old = parse_model_version(repo_id), parse_model_version(base)
    return new.family == old.family and new.version > old.version


def subscription_matches(request: dict[str, object], repo_id: str) -> bool:
    """Whether a subscription (a dump of SubscriptionRequest) matches this repo."""
    bases, base = request.get("bases"), request.get("successors_of")
    if isinstance(bases, str):
        return matches_pattern(bases, repo_id)
    return isinstance(base, str) and is_successor(repo_id, base)


def check_base_repo_id(repo_id: str) -> str:
    """Check a repo id with an owner. Raises ValueError."""
    if "/" not in repo_id:
        raise ValueError("must have an owner: 'owner/name'")
    return check_repo_id(repo_id)


def _parse_version(text: str) -> tuple[int, ...]:
    """Trailing zeros are dropped: 3.0 is 3."""
    parts = [int(part) for part in text.split(".")]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts) or (0,)
