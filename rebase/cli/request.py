"""Builds the `ConversionRequest` of `convert`, `precheck` and `transfer` from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from rebase.errors import RequestInvalid
from rebase.methods.params import DEFAULT_METHOD, PARAMS_BY_NAME
from rebase.schemas.conversions import ConversionRequest, check_selection_examples
from rebase.schemas.field_errors import to_field_errors
from rebase.schemas.repos import parse_repo

_REQUEST_FIELDS = tuple(ConversionRequest.model_fields)
_Model = TypeVar("_Model", bound=BaseModel)


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
                hint=f"A nested parameter of the method is written method.{key}",
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


def validate_request(body: Mapping[str, Any]) -> ConversionRequest:
    """Validate, reporting the first invalid field by the name that the user typed."""
    request = validate_as(ConversionRequest, body)
    check_selection_examples(request)
    return request


def validate_as(model: type[_Model], body: Mapping[str, Any]) -> _Model:
    """Validate the body as a model. Raises RequestInvalid naming the first invalid field."""
    try:
        return model.model_validate(body)
    except ValidationError as exc:
        raise _build_request_error(exc, body) from exc


def _build_request_error(exc: ValidationError, body: Mapping[str, Any]) -> RequestInvalid:
    first = exc.errors(include_url=False, include_context=False)[0]
    # Union tags appear in the location, but users do not type them.
    field_error = to_field_errors([{**first, "loc": ("body", *first["loc"])}], body)[0]
    path = field_error.pointer.split("/")[1:]
    hint = None
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "union_tag_invalid":
        path.append("name")
        name = first["input"].get("name") if isinstance(first["input"], dict) else first["input"]
        message, hint = f"no method is called {name!r}", f"Methods: {', '.join(PARAMS_BY_NAME)}"
    elif first["type"] == "extra_forbidden":
        message, hint = "there is no such parameter", _format_known_parameters(first["loc"])
    elif first["type"] == "string_type":
        hint = f"Write it as a JSON string: '\"{first['input']}\"'"
    dotted_path = ".".join(path)
    return RequestInvalid(
        f"{dotted_path}: {message}" if dotted_path else message, hint=hint, pointer="/" + "/".join(path)
    )


def _format_known_parameters(loc: tuple[int | str, ...]) -> str | None:
    """The known parameters of the method that the last location part was given to."""
    if len(loc) < 3 or loc[0] != "method" or loc[-2] not in PARAMS_BY_NAME:
        return None
    names = [name for name in PARAMS_BY_NAME[str(loc[-2])].model_fields if name != "name"]
    return f"Parameters of {loc[-2]}: {', '.join(names)}"


_MAX_FILE_BYTES = 16 * 2**20


def read_evaluation(path: Path) -> dict[str, Any]:
    """`.jsonl`: one example per line; any other file: the whole object. Raises RequestInvalid naming the
    file, and for JSON lines the line."""
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise _build_file_error(path, f"has more than {_MAX_FILE_BYTES} bytes", "Give fewer examples.")
        text = path.read_text("utf-8")
    except UnicodeDecodeError as exc:
        raise _build_file_error(path, "is not UTF-8 text", "Save it as UTF-8.") from exc
    except OSError as exc:
        raise _build_file_error(path, f"cannot be read: {exc.strerror}", "Check its name.") from exc
    if path.suffix == ".jsonl":
        lines = enumerate(text.split("\n"), 1)
        return {"examples": [_parse_json(path, line, number) for number, line in lines if line.strip()]}
    evaluation = _parse_json(path, text, None)
    if not isinstance(evaluation, dict):
        raise _build_file_error(
            path, "holds no JSON object", "Examples alone go into a .jsonl file, one a line."
        )
    return evaluation


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


def _parse_json(path: Path, text: str, line: int | None) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        where = f" in line {line}" if line is not None else ""
        raise _build_file_error(
            path, f"is no JSON{where}", "See docs/evaluation.md for what it may hold."
        ) from exc


def _build_file_error(path: Path, problem: str, hint: str) -> RequestInvalid:
    return RequestInvalid(f"The file {path} {problem}.", hint=hint, pointer="/evaluate")
