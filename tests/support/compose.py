"""Reads docker-compose.yml as `docker compose` does, as far as this project's file goes: anchors, merge
keys and
`${NAME}`, `${NAME:-default}`, `${NAME:?message}`, and variables without a value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).parents[2] / "docker-compose.yml"
_VARIABLE = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<name>\w+)(?:(?P<how>:[-?])(?P<rest>[^}]*))?\})")


class Unset(Exception):
    """A required variable is not set or empty; the message is the file's own."""


def load(variables: Mapping[str, str]) -> dict[str, Any]:
    """The resolved file. Raises Unset."""
    document: dict[str, Any] = _resolve(yaml.safe_load(FILE.read_text()), variables)
    for service in document["services"].values():
        service["environment"] = _passed_through(service.get("environment", {}), variables)
    return document


def _passed_through(environment: Mapping[str, str | None], variables: Mapping[str, str]) -> dict[str, str]:
    """A variable without a value has the one that it has outside, or is not there."""
    given = {name: variables.get(name) if value is None else value for name, value in environment.items()}
    return {name: value for name, value in given.items() if value is not None}


def _resolve(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _resolve(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, variables) for item in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: _substitute(match, variables), value)
    return value


def _substitute(match: re.Match[str], variables: Mapping[str, str]) -> str:
    if match["escaped"]:
        return "$"
    value = variables.get(match["name"], "")
    if value or match["how"] is None:
        return value
    if match["how"] == ":?":
        raise Unset(f"{match['name']}: {match['rest']}")
    return str(match["rest"])
