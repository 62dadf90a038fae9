"""Where moved adapters go: a name with fields in it, filled in for each adapter and each release.

{owner}         the adapter's owner
{adapter}       the adapter's name
{target_owner}  the new base's owner
{target}        the new base's name
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from core.repos import RepoRef, check_repo_id

DEFAULT = "{owner}/{adapter}--{target}"
FIELDS = ("owner", "adapter", "target_owner", "target")
_FIELD = re.compile(r"\{([^{}]*)\}")
_SAMPLE = "owner/name"


def check_template(template: str) -> str:
    """The template itself. Raises ValueError when it has an unknown field, or can make no repo id."""
    if len(template) > 200:
        raise ValueError("must be at most 200 characters")
    for field in _FIELD.findall(template):
        if field not in FIELDS:
            raise ValueError(f"has no field '{{{field[:40]}}}'; fields are {_listed()}")
    if "{" in (rest := _FIELD.sub("", template)) or "}" in rest:
        raise ValueError("has a brace that belongs to no field")
    check_output(fill(template, _SAMPLE, _SAMPLE))
    return template


def check_distinct(template: str, adapters: Iterable[RepoRef]) -> None:
    """Two adapters of one release must not go to one repo. Raises ValueError naming them."""
    seen: dict[str, RepoRef] = {}
    for adapter in adapters:
        name = fill(template, adapter.repo_id, _SAMPLE).casefold()
        if name in seen:
            raise ValueError(
                f"sends {seen[name]} and {adapter} to one repo; tell them apart by {{adapter}} and {{owner}}"
            )
        seen[name] = adapter


def fill(template: str, adapter: str, target: str) -> str:
    """The name for one adapter and one base, both as repo ids; not checked."""
    owner, _, name = adapter.rpartition("/")
    target_owner, _, target_name = target.rpartition("/")
    values = {"owner": owner, "adapter": name, "target_owner": target_owner, "target": target_name}
    return _FIELD.sub(lambda found: values[found[1]], template)


def check_output(name: str) -> str:
    """A repo id that can be published to. Raises ValueError."""
    if name.count("/") != 1:
        raise ValueError("must make 'owner/name'")
    return check_repo_id(name)


def _listed() -> str:
    return ", ".join(f"{{{field}}}" for field in FIELDS)
