"""Write the reference pages that the code itself knows best: docs/reference/{methods,commands,settings}.md.

python scripts/docs.py            (`make docs`; a test says when the pages are behind the code)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import typer

from rebase.cli.app import app
from rebase.methods.params import PARAMS_BY_NAME, describe
from rebase.settings import Settings

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"
NOTE = "<!-- Written by `make docs` from the code; do not edit. -->"


def build_pages() -> dict[str, str]:
    """File name → text."""
    return {
        "methods.md": render_methods(),
        "commands.md": render_commands(),
        "settings.md": render_settings(),
    }


def render_methods() -> str:
    """Every transfer method with its parameters."""
    lines = ["# Transfer methods: parameters", "", NOTE, ""]
    for entry in describe():
        doc = (PARAMS_BY_NAME[entry["name"]].__doc__ or "").split()
        lines += [f"## `{entry['name']}`", "", " ".join(doc), ""]
        fields = {key: field for key, field in entry["parameters"]["properties"].items() if key != "name"}
        rows = [
            (
                f"`{key}`",
                f"`{_format_default(field.get('default'))}`",
                _format_allowed_values(field),
                field.get("description", ""),
            )
            for key, field in fields.items()
        ]
        lines += [*_render_table(("parameter", "default", "allowed", "meaning"), rows), ""]
    return _join_lines(lines)


def render_commands() -> str:
    """Every command with its arguments and options."""
    lines = ["# Commands", "", NOTE, ""]
    lines += ["Exit codes: 0 done, 1 failed, 2 usage, 3 incompatible, 4 service not reachable.", ""]
    for path, command in _iter_commands(typer.main.get_command(app), ("rebase",)):
        lines += [f"## `{' '.join(path)}`", "", _normalize_whitespace(command.help), ""]
        rows = [
            (_format_option(param), _normalize_whitespace(param.help))
            for param in command.params
            if param.name not in {"help", "_debug", "_version"}
        ]
        if rows:
            lines += [*_render_table(("", ""), rows), ""]
    return _join_lines(lines)


def render_settings() -> str:
    """Every environment variable."""
    rows = [
        (f"`REBASE_{name.upper()}`", f"`{_format_default(field.default)}`", field.description or "")
        for name, field in Settings.model_fields.items()
    ]
    lines = ["# Settings", "", NOTE, ""]
    lines += ["Environment variables, or lines of a `.env` file where the process starts.", ""]
    return _join_lines([*lines, *_render_table(("variable", "default", "meaning"), rows)])


def _iter_commands(command: Any, path: tuple[str, ...]) -> Iterable[tuple[tuple[str, ...], Any]]:
    for name, child in command.commands.items():
        if hasattr(child, "commands"):
            yield from _iter_commands(child, (*path, name))
        else:
            yield (*path, name), child


def _format_option(param: Any) -> str:
    if param.param_type_name == "argument":
        return f"`{param.metavar or param.name.upper()}`"
    value = "" if param.is_flag else f" {param.metavar or param.name.upper()}"
    return f"`{param.opts[0]}{value}`" + (" (required)" if param.required else "")


def _format_allowed_values(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "minimum" in field or "maximum" in field:
        return f"{field.get('minimum', '…')} to {field.get('maximum', '…')}"
    return str(field.get("type", "any"))


def _format_default(value: Any) -> str:
    if value is None:
        return "unset"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _normalize_whitespace(text: str | None) -> str:
    return " ".join((text or "").split())


def _render_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [
        [_normalize_whitespace(cell).replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in rows
    ]
    return [f"| {' | '.join(row)} |" for row in [list(header), ["---"] * len(header), *cells]]


def _join_lines(lines: Sequence[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Write the pages."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in build_pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
