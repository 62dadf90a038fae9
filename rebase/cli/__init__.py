"""The `rebase` command. Imports stay light here: torch is loaded by the commands that compute, and by no
other."""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script."""
    from rebase.cli.app import run

    raise SystemExit(run())
