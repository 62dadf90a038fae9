"""The `rebase` command. Imports stay light here: torch is loaded by the commands that compute, and by no
other."""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script."""
    import sys
    import warnings

    from rebase.cli.app import run

    if not sys.warnoptions:  # what libraries tell their developers is no business of this command's users
        warnings.simplefilter("ignore")
    raise SystemExit(run())
