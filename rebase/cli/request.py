"""Builds the one `ConversionRequest` that `convert`, `precheck` and `transfer` share from what was typed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from rebase.errors import RequestInvalid
from rebase.evaluation_files import merged
from rebase.methods.params import DEFAULT_METHOD, PARAMS_BY_NAME
from rebase.schemas.conversions import ConversionRequest, check_selection_examples
from service.pointers import field_errors

_OBJECTS = tuple(ConversionRequest.model_fields)
_Model = TypeVar("_Model", bound=BaseModel)


def parse_repo(text: str, *, field: str) -> dict[str, str]:
    """`owner/name[@revision]` as the fields of a RepoRef; the id itself is checked by the request model."""
    repo_id, at, revision = text.partition("@")
    if at and not revision:
        raise RequestInvalid(f"{field}: '{text}' ends in '@' without a revision.", pointer=f"/{field}")
    return {"repo_id": repo_id, "revision": revision} if at else {"repo_id": repo_id}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def parse_value(text: str) -> Any:
    """JSON when it parses (`4`, `true`, `null`, `["a"]`, `"0"`), the text itself otherwise. NaN and Infinity
    are text."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text


def parse_settings(settings: Iterable[str], objects: Sequence[str] = _OBJECTS) -> dict[str, Any]:
    """`key=value` pairs as a nested object: `rank=64` → {"method": {"rank": 64}}, `output.max_rank=16` →
    {"output": …}.

    A later pair replaces an earlier one with the same key. `objects`: what a dotted key may begin with.
    Raises RequestInvalid naming the pair that is wrong.
    """
    tree: dict[str, Any] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        parts = key.split(".")
        if not equals or not all(part.isidentifier() for part in parts):
            raise RequestInvalid(
                f"--set {text!r} is not key=value.", hint="Example: --set rank=64 --set output.max_rank=16"
            )
        if len(parts) == 1:
            parts = ["method", *parts]
        elif parts[0] not in objects:
            raise RequestInvalid(
                f"--set {key}: the request has no object '{parts[0]}'; it has {', '.join(objects)}.",
                hint=f"A nested parameter of the method is written method.{key}",
                pointer=f"/{parts[0]}",
            )
        _put(tree, parts, parse_value(value))
    return tree


def _put(tree: dict[str, Any], parts: list[str], value: Any) -> None:
    node = tree
    for depth, part in enumerate(parts[:-1], start=1):
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise RequestInvalid(
                f"--set {'.'.join(parts)}: {'.'.join(parts[:depth])} already has a plain value.",
                pointer="/" + "/".join(parts[:depth]),
            )
    node[parts[-1]] = value


def build_request(
    *,
    adapter: str,
    target: str,
    source: str | None = None,
    method: str | None = None,
    output: str | None = None,
    settings: Iterable[str] = (),
    evaluate: Mapping[str, Any] | None = None,
) -> ConversionRequest:
    """The request that was typed; `evaluate`: what a file says, which --set goes over. Raises RequestInvalid
    (exit 2) with the field named."""
    body: dict[str, Any] = parse_settings(settings)
    if evaluate is not None:
        body["evaluate"] = merged(evaluate, body.get("evaluate", {}))
    overlay(body, "adapter", parse_repo(adapter, field="adapter"))
    overlay(body, "target", parse_repo(target, field="target"))
    if source is not None:
        overlay(body, "source", parse_repo(source, field="source"))
    if method is not None:
        overlay(body, "method", {"name": method})
    elif isinstance(body.get("method"), dict):
        body["method"].setdefault("name", DEFAULT_METHOD)
    if output is not None:
        overlay(body, "output", parse_repo(output, field="output"))
    return validate(body)


def overlay(body: dict[str, Any], field: str, given: Mapping[str, Any]) -> None:
    """Join what an argument says with what --set says about the same object; both saying it differently is an
    error."""
    existing = body.get(field, {})
    if not isinstance(existing, dict):
        raise RequestInvalid(f"--set {field}: use --set {field}.<key>=value.", pointer=f"/{field}")
    for key, value in given.items():
        if existing.get(key, value) != value:
            raise RequestInvalid(
                f"{field}.{key} is given twice: {value!r} as an argument and {existing[key]!r} by --set.",
                pointer=f"/{field}/{key}",
            )
    body[field] = {**existing, **given}


def validate(body: Mapping[str, Any]) -> ConversionRequest:
    """Validate, telling the first wrong field by the name that was typed."""
    request = validate_as(ConversionRequest, body)
    check_selection_examples(request)
    return request


def validate_as(model: type[_Model], body: Mapping[str, Any]) -> _Model:
    """The body as a model. Raises RequestInvalid naming the first wrong field."""
    try:
        return model.model_validate(body)
    except ValidationError as exc:
        raise _named(exc, body) from exc


def _named(exc: ValidationError, body: Mapping[str, Any]) -> RequestInvalid:
    first = exc.errors(include_url=False, include_context=False)[0]
    # Unions put tags into the location; nobody typed them there.
    found = field_errors([{**first, "loc": ("body", *first["loc"])}], body)[0]
    path = found.pointer.split("/")[1:]
    hint = None
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "union_tag_invalid":
        path.append("name")
        given = first["input"].get("name") if isinstance(first["input"], dict) else first["input"]
        message, hint = f"no method is called {given!r}", f"Methods: {', '.join(PARAMS_BY_NAME)}"
    elif first["type"] == "extra_forbidden":
        message, hint = "there is no such parameter", _known_parameters(first["loc"])
    elif first["type"] == "string_type":
        hint = f"Write it as a JSON string: '\"{first['input']}\"'"
    where = ".".join(path)
    return RequestInvalid(
        f"{where}: {message}" if where else message, hint=hint, pointer="/" + "/".join(path)
    )


def _known_parameters(loc: tuple[int | str, ...]) -> str | None:
    """Of the method that the parameter in last place was given to."""
    if len(loc) < 3 or loc[0] != "method" or loc[-2] not in PARAMS_BY_NAME:
        return None
    names = [name for name in PARAMS_BY_NAME[str(loc[-2])].model_fields if name != "name"]
    return f"Parameters of {loc[-2]}: {', '.join(names)}"
