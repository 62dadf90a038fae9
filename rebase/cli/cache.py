"""`rebase cache`: the factor cache on this machine's disk."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from rebase.cli import options
from rebase.cli.exit_codes import Exit
from rebase.cli.output import Output
from rebase.errors import RequestInvalid
from rebase.settings import Settings

if TYPE_CHECKING:
    from rebase.cache.factor_cache import FactorCache

commands = typer.Typer(help="Inspect or shrink the factor cache on disk.", no_args_is_help=True)

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?", re.ASCII | re.IGNORECASE)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_size(text: str) -> int:
    """`0`, `500M` or `20G` in bytes; units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise RequestInvalid(f"'{text}' is not a size.", hint="Examples: 0, 500M, 20G")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def format_size(size: float) -> str:
    """Bytes in a readable unit."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _factor_cache(settings: Settings) -> FactorCache:
    from rebase.cache.factor_cache import FactorCache

    return FactorCache(settings.resolved_cache_dir, settings.cache_max_bytes)


@commands.command("ls")
def ls(as_json: options.AsJson = False) -> int:
    """List cached entries, least recently used first."""
    out, settings = Output(as_json=as_json), Settings()
    entries = _factor_cache(settings).list_entries()
    rows = [
        {
            "key": entry.key.fields if entry.key is not None else None,
            "bytes": entry.bytes,
            "last_used": datetime.fromtimestamp(entry.last_used, UTC).isoformat(timespec="seconds"),
        }
        for entry in entries
    ]
    total = sum(entry.bytes for entry in entries)
    out.write_json({"folder": str(settings.resolved_cache_dir), "entries": rows, "bytes": total})
    if entries:
        table = Table("base", "what", "size", "last used (UTC)", box=None, pad_edge=False)
        for entry, row in zip(entries, rows, strict=True):
            labels = (entry.key.bases, entry.key.contents) if entry.key else ("unreadable", "")
            table.add_row(*map(Text, labels), format_size(entry.bytes), str(row["last_used"])[:19])
        out.show(table)
    out.show(f"{len(entries)} entries, {format_size(total)} in {settings.resolved_cache_dir}")
    return Exit.DONE


@commands.command("prune")
def prune(
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="SIZE",
            help="Keep at most this much, e.g. 500M; default: REBASE_CACHE_MAX_BYTES. 0 empties the cache.",
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> int:
    """Remove the least recently used entries until the rest fits the size."""
    out, settings = Output(as_json=as_json), Settings()
    size = parse_size(to) if to is not None else settings.cache_max_bytes
    removed = _factor_cache(settings).prune(size)
    out.write_json({"removed": removed.entries, "bytes": removed.bytes})
    out.show(f"Removed {removed.entries} entries, {format_size(removed.bytes)}.")
    return Exit.DONE
