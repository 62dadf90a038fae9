"""How people name a repo: `owner/name[@revision][:subfolder]`, or the address of a page of the Hub.

Addresses are read, never opened. Their host has to be the Hub's, or that of `HF_ENDPOINT`, the deployment's
own Hub; the pages of other sites also look like owner/name.
"""

from __future__ import annotations

import os
import re
from typing import Literal
from urllib.parse import unquote, urlsplit

MAX_SUBFOLDER = 250

RepoKind = Literal["model", "dataset"]

_HUB_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
_SCHEME = re.compile(r"https?://", re.IGNORECASE)
# What may follow owner/name: pages of a folder, pages of a file, and pages of a commit.
_FOLDER_PAGES, _FILE_PAGES = frozenset({"tree", "commit", "commits"}), frozenset({"blob", "resolve", "raw"})
_PAGES = _FOLDER_PAGES | _FILE_PAGES | {"discussions", "settings", "activity", "edit", "upload"}
_OTHER_KINDS = frozenset({"datasets", "spaces", "collections", "papers", "docs", "models", "organizations"})


def check_subfolder(value: str) -> str:
    """A folder inside a repo, such as `checkpoint-500` or `adapters/sql`, without a final slash. Raises
    ValueError for anything that could lead out of the repo."""
    value = value.removesuffix("/")
    if not value or len(value) > MAX_SUBFOLDER or not value.isprintable() or "\\" in value:
        raise ValueError(
            f"must be a folder of the repo: at most {MAX_SUBFOLDER} printable characters, without a backslash"
        )
    if any(part in ("", ".", "..") or part != part.strip() for part in value.split("/")):
        raise ValueError("must be a relative folder of the repo such as 'checkpoint-500', without '..'")
    return value


def split_reference(text: str, *, kind: RepoKind = "model") -> dict[str, str]:
    """The fields repo_id, revision and subfolder of a reference, as far as it has them.

    Only the shape is read; the request model checks each field. Raises ValueError for an address that is not
    one of a repo, and for a revision or subfolder that is announced and missing.
    """
    fields = split_address(text, kind=kind)
    if fields is not None:
        return fields
    name, colon, subfolder = text.partition(":")
    repo_id, at, revision = name.partition("@")
    if at and not revision:
        raise ValueError("has an '@' without a revision")
    if colon and not subfolder:
        raise ValueError("ends in ':' without a subfolder")
    fields = {"repo_id": repo_id}
    if at:
        fields["revision"] = revision
    if colon:
        fields["subfolder"] = check_subfolder(subfolder)
    return fields


def split_address(text: str, *, kind: RepoKind = "model") -> dict[str, str] | None:
    """The fields of the address of a repo's page; None if the text is no address. Raises ValueError."""
    path = _get_hub_path(text)
    if path is None:
        return None
    parts = [part for part in path.split("/") if part]
    if kind == "dataset":
        if parts[:1] != ["datasets"]:
            raise ValueError("is the address of something else than a dataset")
        parts = parts[1:]
    elif parts and parts[0] in _OTHER_KINDS:
        raise ValueError(f"is the address of something else than a model: '{parts[0]}'")
    # Old models have no owner: huggingface.co/gpt2/tree/main.
    size = 1 if len(parts) == 1 or (len(parts) > 2 and parts[1] in _PAGES) else 2
    name, rest = [unquote(part) for part in parts[:size]], parts[size:]
    if not name:
        raise ValueError("is the address of the Hub and names no repo")
    return {"repo_id": "/".join(name), **_split_page(rest)}


def _get_hub_path(text: str) -> str | None:
    """The path of an address on a Hub; None if the text is no address."""
    if not _SCHEME.match(text):
        if text.partition("/")[0].lower() not in _HUB_HOSTS:
            return None
        text = f"https://{text}"
    try:
        address = urlsplit(text)
        host = (address.hostname or "").lower()
    except ValueError:
        raise ValueError("is an address that cannot be read") from None
    if address.username is not None or address.password is not None:
        raise ValueError("is an address with a user or a password, which no reference may hold")
    if host in _HUB_HOSTS:
        return address.path
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "")
    base = endpoint.path.rstrip("/")
    if endpoint.hostname and address.netloc.lower() == endpoint.netloc.lower():
        if base and not address.path.startswith(f"{base}/"):
            raise ValueError(f"is an address outside of the Hub at {endpoint.netloc}{base}")
        return address.path.removeprefix(base)
    raise ValueError(
        f"is an address on '{host[:100]}', which is not the Hub (huggingface.co, or what HF_ENDPOINT names)"
    )


def _split_page(parts: list[str]) -> dict[str, str]:
    """Revision and subfolder, from what follows owner/name in an address."""
    if not parts:
        return {}
    page, revision, rest = parts[0], "", parts[1:]
    if page not in _FOLDER_PAGES | _FILE_PAGES:
        raise ValueError(
            f"is the address of a page about the repo ('{page[:40]}'); give that of the repo or a folder"
        )
    if not rest:
        return {}
    # The Hub writes a slash in a revision as %2F; refs/pr/3 is also seen with plain ones.
    count = 3 if rest[0] == "refs" and len(rest) >= 3 else 1
    revision, rest = unquote("/".join(rest[:count])), [unquote(part) for part in rest[count:]]
    if page in _FILE_PAGES:
        rest = rest[:-1]
    if page in ("commit", "commits"):
        rest = []
    fields = {"revision": revision}
    return {**fields, "subfolder": check_subfolder("/".join(rest))} if rest else fields
