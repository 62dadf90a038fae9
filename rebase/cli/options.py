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
Target = Annotated[str, typer.Option("--target", metavar="REPO", help="The base model to move it to.")]
Source = Annotated[
    str | None,
    typer.Option(
        "--source", metavar="REPO", help="The base it was trained on; default: what the adapter names."
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
        help="A parameter of the method, or with a dotted key of the request: --set output.max_rank=16.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else there.")]
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
        help="Anchors to predict from, as for `rebase pools add`; here folders are allowed, and the two "
        "bases may be left out.",
    ),
]

EvaluateFile = Annotated[
    Path | None,
    typer.Option(
        "--evaluate",
        metavar="FILE",
        help="Measure the moved adapter: .jsonl with an example a line, or .json with all of `evaluate`; "
        "see docs/evaluation.md.",
    ),
]

CorpusFile = Annotated[
    Path | None,
    typer.Option(
        "--corpus",
        metavar="FILE",
        help="Text that both bases read: plain, with empty lines between documents, or .jsonl with a `text` "
        "field; default: the bundled one.",
    ),
]

DEFAULT_URL = "http://127.0.0.1:8000"
