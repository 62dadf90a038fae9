"""`python -m support.standin_hub --root DIR --port N [--token VALUE=USER[:role]] [--seed FOLDER]
[--without owner/name]`

Prints its address on the first line, then serves until it is stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from support.standin_hub.server import StandinHub


def main() -> None:
    """Seed and serve."""
    parser = argparse.ArgumentParser(description="A stand-in for the Hub on 127.0.0.1.")
    parser.add_argument("--root", type=Path, required=True, help="where its state lies")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--token", action="append", default=[], metavar="VALUE=USER[:read|write]")
    parser.add_argument(
        "--seed", type=Path, action="append", default=[], help="a folder of owner/name/… repos"
    )
    parser.add_argument("--without", action="append", default=[], help="a repo of a seed that is left out")
    arguments = parser.parse_args()
    hub = StandinHub(arguments.root, port=arguments.port)
    for token in arguments.token:
        value, _, user = token.partition("=")
        name, _, role = user.partition(":")
        hub.add_token(value, user=name, role=role or "write")
    for folder in arguments.seed:
        for repo_id, files in repos_in(folder):
            if repo_id not in arguments.without:
                hub.add_repo(repo_id, files)
    print(hub.url, flush=True)
    hub.serve()


def repos_in(folder: Path) -> list[tuple[str, Path]]:
    """(repo id, folder with its files) for each repo of a local hub folder, managed or plain."""
    found = []
    for path in sorted(
        path for path in folder.glob("*/*") if path.is_dir() and not path.parent.name.startswith(".")
    ):
        main = path / "refs" / "main"
        files = path / "revisions" / main.read_text().strip() if main.is_file() else path
        found.append((path.relative_to(folder).as_posix(), files))
    return found


if __name__ == "__main__":
    main()
