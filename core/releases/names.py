"""Which repos a subscription means: a pattern over the names of one owner, or the successors of a base.

Names are compared without regard to case, as the Hub tells repos apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from core.repos import check_repo_id

_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.*?-]+", re.ASCII)
_WORDS = re.compile(r"[-_]+")
_SIZE = re.compile(r"(?:\d+x)?\d+(?:\.\d+)?[bmkt]", re.ASCII)  # 8b, 135m, 4k, 8x7b: a size, no version
_VERSION = re.compile(r"(?P<family>[a-z]*?)v?(?P<version>\d+(?:\.\d+)*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Generation:
    """What a name says: `qwen2.5-7b-instruct` is generation (2, 5) of the family `qwen`. A name without a
    version is of generation ()."""

    family: str
    version: tuple[int, ...]


def check_pattern(pattern: str) -> str:
    """`owner/name` where the name may hold `*` and `?`. Raises ValueError."""
    if len(pattern) > 200 or not _PATTERN.fullmatch(pattern):
        raise ValueError("must be 'owner/name', where the name (and not the owner) may hold * and ?")
    return pattern


def owner_of(repo_id: str) -> str:
    """The owner as subscriptions are found by; empty for a bare name."""
    return repo_id.rpartition("/")[0].casefold()


def matches(pattern: str, repo_id: str) -> bool:
    """Does the repo have such a name? `*` is any run of characters of the name, `?` any one."""
    owner, _, name = pattern.casefold().partition("/")
    other, _, text = repo_id.casefold().partition("/")
    return owner == other and _globbed(name, text)


def _globbed(pattern: str, text: str) -> bool:
    """Greedy matching that goes back to the last star only: the product of the lengths at worst, whatever
    the pattern."""
    at = star = 0
    here, kept = 0, -1
    while here < len(text):
        if at < len(pattern) and pattern[at] in ("?", text[here]) and pattern[at] != "*":
            at, here = at + 1, here + 1
        elif at < len(pattern) and pattern[at] == "*":
            star, kept, at = at, here, at + 1
        elif kept >= 0:
            kept += 1
            at, here = star + 1, kept
        else:
            return False
    return all(char == "*" for char in pattern[at:])


def generation_of(repo_id: str) -> Generation:
    """Family and version by the name alone.

    The name is cut into words at '-' and '_'. Words that are sizes (8B, 135M, 4k) do not count. The first
    word with a number in it holds the version; letters before that number belong to the family, as do the
    words before it. What comes after is a variant and does not count.
    """
    words = [word for word in _WORDS.split(repo_id.rpartition("/")[2].casefold()) if word]
    family: list[str] = []
    for word in (word for word in words if not _SIZE.fullmatch(word)):
        found = _VERSION.match(word)
        if found is not None:
            family += [found["family"]] if found["family"] else []
            return Generation("-".join(family), _version(found["version"]))
        family.append(word)
    return Generation("-".join(family), ())


def is_successor(repo_id: str, base: str) -> bool:
    """Is the repo a later generation of the base: same owner, same family, higher version?"""
    if owner_of(repo_id) != owner_of(base):
        return False
    new, old = generation_of(repo_id), generation_of(base)
    return new.family == old.family and new.version > old.version


def is_meant(request: dict[str, object], repo_id: str) -> bool:
    """Does a subscription (a dump of SubscriptionRequest) mean this repo?"""
    bases, base = request.get("bases"), request.get("successors_of")
    if isinstance(bases, str):
        return matches(bases, repo_id)
    return isinstance(base, str) and is_successor(repo_id, base)


def check_base(repo_id: str) -> str:
    """A repo id with an owner. Raises ValueError."""
    if "/" not in repo_id:
        raise ValueError("must name an owner: 'owner/name'")
    return check_repo_id(repo_id)


def _version(text: str) -> tuple[int, ...]:
    """Trailing zeros say nothing: 3.0 is 3."""
    parts = [int(part) for part in text.split(".")]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts) or (0,)
