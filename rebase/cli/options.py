"""Arguments and options shared by several commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Adapter = Annotated[
    str,
    typer.Argument(
        metavar="ADAPTER", help="The adapter: owner/name[@revision][:subfolder], or its address on the Hub."
    ),
]
Target = Annotated[str, typer.Option("--target", metavar="REPO", help="The base model to transfer it to.")]
Source = Annotated[
    str | None,
    typer.Option(
        "--source",
        metavar="REPO",
        help=("The base it was trained on; default: the base that the adapter names."),
    ),
]
Method = Annotated[
    str | None, typer.Option("--method", metavar="NAME", help="Default: auto. See `rebase methods`.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A method parameter, or a request field with a dotted key: --set output.max_rank=16.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Url = Annotated[
    str, typer.Option("--url", envvar="REBASE_URL", metavar="URL", help="Address of the service.")
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
Home = Annotated[
    Path | None,
    typer.Option("--home", metavar="DIR", help="Folder for database, cache and logs; default: .rebase."),
]

PoolFile = Annotated[
    str | None,
    typer.Option(
        "--pool",
        metavar="FILE.json",
        help=(
            "Anchors to predict from, as for `rebase pools add`; folders are also allowed, and the two "
            "bases may be omitted."
        ),
    ),
]

EvaluateFile = Annotated[
    Path | None,
    typer.Option(
        "--evaluate",
        metavar="FILE",
        help=(
            "Evaluate the transferred adapter: .jsonl with one example per line, or .json with the whole "
            "`evaluate` object; see docs/evaluation.md."
        ),
    ),
]

CorpusFile = Annotated[
    Path | None,
    typer.Option(
        "--corpus",
        metavar="FILE",
        help=(
            "Text to run both bases on: plain, with empty lines between documents, or .jsonl with a `text` "
            "field; default: the bundled text."
        ),
    ),
]

DEFAULT_URL = "http://127.0.0.1:8000"
