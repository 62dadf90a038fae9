"""Reads anchor pools from files: the body of `POST /anchor-pools`; with `--pool` also folders and short
names."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from rebase.errors import NotFound, RequestInvalid
from rebase.hub.aliases import FolderAliases, find_folder, validate_repo_reference
from rebase.schemas.anchor_pools import Pool, PoolRequest
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.repos import parse_repo

STDIN = "-"


@dataclass(frozen=True, slots=True)
class FilePool:
    """Implements `rebase.schemas.anchor_pools.AnchorPools` with the single pool given by `--pool`."""

    spec: PoolRequest

    def get(self, pool_id: str) -> Pool:
        """Raises NotFound: a pool from a file has no id."""
        raise NotFound(
            f"There is no anchor pool '{pool_id}' here, only the one given with --pool.",
            pointer="/method/pool",
        )

    def find_for_bases(self, source_repo: str, target_repo: str) -> Pool | None:
        """The pool, for any bases: it was requested, so a mismatch is reported as an error later."""
        return Pool(None, self.spec)


def read_pool(file: str) -> PoolRequest:
    """The request in `file` (`-`: standard input). Raises RequestInvalid that names the invalid field."""
    return _validate_pool(file, _read_json(file))


def read_local_pool(file: str, request: ConversionRequest, aliases: FolderAliases) -> FilePool:
    """The pool in `file` for a run without a service.

    A reference is an object, `owner/name[@revision][:subfolder]`, or a folder (relative to the file's own),
    which gets an alias. Bases missing in the file default to the request's. Raises RequestInvalid.
    """
    method = request.method
    if not method.uses_pool:
        raise RequestInvalid(
            f"--pool is for the methods anchor_ridge and auto; {method.name} does not use a pool.",
            pointer="/method",
        )
    if method.pool_id is not None:
        raise RequestInvalid(
            "Two pools are given, by --pool and by the method's parameter 'pool'.", pointer="/method/pool"
        )
    body = _read_json(file)
    if body.get("source") is None and request.source is None:
        raise RequestInvalid(
            f"{file}: source: neither the file nor the command says which base the anchors' adapters were "
            "trained on.",
            hint="Add it to the file, or pass --source.",
            pointer="/source",
        )
    base_dir = Path.cwd() if file == STDIN else Path(file).parent
    for side, default in (("source", request.source), ("target", request.target)):
        if body.get(side) is not None:
            body[side] = _resolve_reference(body[side], side, file, base_dir, aliases)
        elif default is not None:
            body[side] = default.model_dump()
    anchors = body.get("anchors")
    for number, anchor in enumerate(anchors if isinstance(anchors, list) else []):
        for side in ("source", "target"):
            if isinstance(anchor, dict) and side in anchor:
                field = f"anchors[{number}].{side}"
                anchor[side] = _resolve_reference(anchor[side], field, file, base_dir, aliases)
    return FilePool(_validate_pool(file, body))


def _resolve_reference(value: Any, field: str, file: str, base_dir: Path, aliases: FolderAliases) -> Any:
    """The fields of a RepoRef for a short name or a folder; anything else is left to pydantic to validate."""
    if not isinstance(value, str):
        return value
    try:
        folder = find_folder(str(base_dir / value)) if value else None
        reference = (
            aliases.to_reference(str(folder)) if folder is not None else validate_repo_reference(value)
        )
        return parse_repo(reference, field=field)
    except RequestInvalid as exc:
        exc.message = f"{file}: {exc.message}" if exc.pointer else f"{file}: {field}: {exc.message}"
        raise


def _read_json(file: str) -> dict[str, Any]:
    try:
        text = sys.stdin.read() if file == STDIN else Path(file).read_text("utf-8")
    except OSError as exc:
        raise RequestInvalid(f"{file} cannot be read: {exc.strerror}.") from exc
    except UnicodeDecodeError as exc:
        raise RequestInvalid(f"{file} is not UTF-8 text.") from exc
    try:
        body = json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as exc:
        raise RequestInvalid(f"{file} is not valid JSON: {exc}.") from exc
    if not isinstance(body, dict):
        raise RequestInvalid(f"{file} is not a JSON object.")
    return body


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _validate_pool(file: str, body: Mapping[str, Any]) -> PoolRequest:
    try:
        return PoolRequest.model_validate(body)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False)[0]
    field_path = ""
    for part in first["loc"]:
        field_path += f"[{part}]" if isinstance(part, int) else f".{part}" if field_path else part
    message = first["msg"].removeprefix("Value error, ")
    hint = None
    if first["type"] == "extra_forbidden":
        message = "unknown field"
    elif first["type"] == "model_type":
        hint = 'Write a repo as {"repo_id": "owner/name", "revision": "main"}.'
    raise RequestInvalid(
        ": ".join(part for part in (file, field_path, message) if part),
        hint=hint,
        pointer="/" + "/".join(str(part) for part in first["loc"]),
    )
