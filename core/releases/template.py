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

DEFAULT_OUTPUT_TEMPLATE = "{owner}/{adapter}--{target}"
TEMPLATE_FIELDS = ("owner", "adapter", "target_owner", "target")
_FIELD = re.compile(r"\{([^{}]*)\}")
_SAMPLE_REPO_ID = "owner/name"


def check_template(template: str) -> str:
    """The template itself. Raises ValueError when it has an unknown field, or can make no repo id."""
    if len(template) > 200:
        raise ValueError("must be at most 200 characters")
    for field in _FIELD.findall(template):
        if field not in TEMPLATE_FIELDS:
            raise ValueError(f"has no field '{{{field[:40]}}}'; fields are {_format_fields()}")
    if "{" in (rest := _FIELD.sub("", template)) or "}" in rest:
        raise ValueError("has a brace that belongs to no field")
    check_output_repo_id(fill_template(template, _SAMPLE_REPO_ID, _SAMPLE_REPO_ID))
    return template


def check_distinct_outputs(template: str, adapters: Iterable[RepoRef]) -> None:
    """Two adapters of one release must not go to one repo. Raises ValueError naming them."""
    seen: dict[str, RepoRef] = {}
    for adapter in adapters:
        name = fill_template(template, adapter.repo_id, _SAMPLE_REPO_ID).casefold()
        if name in seen:
            raise ValueError(
                f"sends {seen[name]} and {adapter} to one repo; tell them apart by {{adapter}} and {{owner}}"
            )
        seen[name] = adapter


def fill_template(template: str, adapter: str, target: str) -> str:
    """The name for one adapter and one base, both as repo ids; not checked."""
    owner, _, name = adapter.rpartition("/")
    target_owner, _, target_name = target.rpartition("/")
    values = {"owner": owner, "adapter": name, "target_owner": target_owner, "target": target_name}
    return _FIELD.sub(lambda match: values[match[1]], template)


def check_output_repo_id(name: str) -> str:
    """A repo id that can be published to. Raises ValueError."""
    if name.count("/") != 1:
        raise ValueError("must make 'owner/name'")
    return check_repo_id(name)


def _format_fields() -> str:
    return ", ".join(f"{{{field}}}" for field in TEMPLATE_FIELDS)
