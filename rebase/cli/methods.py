"""`rebase methods`: the transfer methods of this installation; needs no service."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from rebase.cli import options
from rebase.cli.exit_codes import Exit
from rebase.cli.output import Output
from rebase.errors import RequestInvalid
from rebase.methods.params import describe


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show this method's parameters.")
    ] = None,
    as_json: options.AsJson = False,
) -> int:
    """List the transfer methods, or show one method's parameters."""
    out = Output(as_json=as_json)
    entries = describe()
    if name is None:
        out.write_json({"methods": entries})
        out.show(_build_methods_table(entries))
        return Exit.DONE
    selected = next((entry for entry in entries if entry["name"] == name), None)
    if selected is None:
        names = ", ".join(entry["name"] for entry in entries)
        raise RequestInvalid(
            f"There is no method '{name}'.", hint=f"Methods: {names}", pointer="/method/name"
        )
    out.write_json(selected)
    out.show(f"{selected['name']}: {selected['summary']}", _build_parameters_table(selected["parameters"]))
    return Exit.DONE


def _build_methods_table(entries: list[dict[str, Any]]) -> Table:
    table = Table("method", "what it does", box=None, pad_edge=False)
    for entry in entries:
        table.add_row(entry["name"], Text(entry["summary"]))
    return table


def _build_parameters_table(schema: dict[str, Any]) -> Table:
    table = Table("parameter", "default", "allowed", "meaning", box=None, pad_edge=False)
    for key, field in schema["properties"].items():
        if key != "name":
            description = Text(field.get("description", ""))
            table.add_row(key, _format_default(field), _format_allowed_values(field), description)
    return table


def _format_default(field: dict[str, Any]) -> str:
    value = field.get("default")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _format_allowed_values(field: dict[str, Any]) -> str:
    if "enum" in field:
        return " | ".join(str(value) for value in field["enum"])
    if "minimum" in field or "maximum" in field:
        return f"{field.get('minimum', '…')} to {field.get('maximum', '…')}"
    return str(field.get("type", "any"))
