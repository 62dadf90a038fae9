"""What `--evaluate FILE` holds: the request's `evaluate` as JSON, or examples as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rebase.errors import RequestInvalid

_MAX_FILE_BYTES = 16 * 2**20


def read_evaluation(path: Path) -> dict[str, Any]:
    """`.jsonl`: one example a line; any other file: the object whole. Raises RequestInvalid with the file,
    and for JSON lines the line."""
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
    """What the file says, with what --set says over it."""
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
