"""Validating plain objects: errors name the first invalid field as the user typed it, with a hint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rebase.errors import RequestInvalid
from rebase.methods.params import PARAMS_BY_NAME
from rebase.schemas.conversions import ConversionRequest, check_selection_examples
from rebase.schemas.field_errors import to_field_errors

_Model = TypeVar("_Model", bound=BaseModel)
_MAX_FILE_BYTES = 16 * 2**20


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
        message, hint = f"there is no method {name!r}", f"Methods: {', '.join(PARAMS_BY_NAME)}"
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


def read_evaluation(path: Path) -> dict[str, Any]:
    """`.jsonl`: one example per line; any other file: the whole object. Raises RequestInvalid naming the
    file, and for JSON lines the line."""
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise _build_file_error(path, f"has more than {_MAX_FILE_BYTES} bytes", "Use fewer examples.")
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
            path, "is not a JSON object", "A list of examples belongs in a .jsonl file, one example per line."
        )
    return evaluation


def _parse_json(path: Path, text: str, line: int | None) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        where = f" in line {line}" if line is not None else ""
        raise _build_file_error(
            path, f"is not valid JSON{where}", "See docs/evaluation.md for its fields."
        ) from exc


def _build_file_error(path: Path, problem: str, hint: str) -> RequestInvalid:
    return RequestInvalid(f"The file {path} {problem}.", hint=hint, pointer="/evaluate")
