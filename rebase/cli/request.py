"""Builds the `ConversionRequest` of `convert`, `precheck` and `transfer` from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from rebase.errors import RequestInvalid
from rebase.methods.params import DEFAULT_METHOD
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.repos import parse_repo
from rebase.schemas.validation import validate_request

_REQUEST_FIELDS = tuple(ConversionRequest.model_fields)


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(name)


def parse_value(text: str) -> Any:
    """The value as JSON if it parses (`4`, `true`, `null`, `["a"]`, `"0"`), else the text itself. NaN and
    Infinity are text."""
    try:
        return json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        return text


def parse_settings(settings: Iterable[str], objects: Sequence[str] = _REQUEST_FIELDS) -> dict[str, Any]:
    """`key=value` pairs as a nested object: `rank=64` → {"method": {"rank": 64}}, `output.max_rank=16` →
    {"output": …}.

    A later pair overrides an earlier one with the same key. `objects`: the allowed first parts of a dotted
    key. Raises RequestInvalid naming the invalid pair.
    """
    tree: dict[str, Any] = {}
    for text in settings:
        key, separator, value = text.partition("=")
        parts = key.split(".")
        if not separator or not all(part.isidentifier() for part in parts):
            raise RequestInvalid(
                f"--set {text!r} is not key=value.", hint="Example: --set rank=64 --set output.max_rank=16"
            )
        if len(parts) == 1:
            parts = ["method", *parts]
        elif parts[0] not in objects:
            raise RequestInvalid(
                f"--set {key}: the request has no object '{parts[0]}'; it has {', '.join(objects)}.",
                hint=f"Write a nested method parameter as method.{key}",
                pointer=f"/{parts[0]}",
            )
        _set_nested(tree, parts, parse_value(value))
    return tree


def _set_nested(tree: dict[str, Any], parts: list[str], value: Any) -> None:
    node = tree
    for depth, part in enumerate(parts[:-1], start=1):
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise RequestInvalid(
                f"--set {'.'.join(parts)}: {'.'.join(parts[:depth])} already has a value that is not an "
                "object.",
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
    """The request from the command line; `evaluate`: a file's content, which --set overrides. Raises
    RequestInvalid (exit 2) naming the field."""
    body: dict[str, Any] = parse_settings(settings)
    if evaluate is not None:
        body["evaluate"] = merge_evaluation(evaluate, body.get("evaluate", {}))
    merge_field(body, "adapter", parse_repo(adapter, field="adapter"))
    merge_field(body, "target", parse_repo(target, field="target"))
    if source is not None:
        merge_field(body, "source", parse_repo(source, field="source"))
    if method is not None:
        merge_field(body, "method", {"name": method})
    elif isinstance(body.get("method"), dict):
        body["method"].setdefault("name", DEFAULT_METHOD)
    if output is not None:
        merge_field(body, "output", parse_repo(output, field="output"))
    return validate_request(body)


def merge_field(body: dict[str, Any], field: str, values: Mapping[str, Any]) -> None:
    """Merge an argument's values with those of --set for the same object; contradictions raise
    RequestInvalid."""
    existing = body.get(field, {})
    if not isinstance(existing, dict):
        raise RequestInvalid(f"--set {field}: use --set {field}.<key>=value.", pointer=f"/{field}")
    for key, value in values.items():
        if existing.get(key, value) != value:
            raise RequestInvalid(
                f"{field}.{key} is given twice: {value!r} as an argument and {existing[key]!r} by --set.",
                pointer=f"/{field}/{key}",
            )
    body[field] = {**existing, **values}


def merge_evaluation(file_values: Mapping[str, Any], settings: Any) -> dict[str, Any]:
    """The file's content, overridden by --set."""
    if not isinstance(settings, Mapping):
        raise RequestInvalid(
            "--set evaluate: use --set evaluate.<key>=value beside --evaluate.", pointer="/evaluate"
        )
    result = dict(file_values)
    for key, value in settings.items():
        inner = result.get(key)
        both_mappings = isinstance(inner, Mapping) and isinstance(value, Mapping)
        result[key] = {**inner, **value} if both_mappings and isinstance(inner, Mapping) else value
    return result
