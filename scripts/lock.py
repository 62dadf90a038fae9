"""Write `requirements.lock`: one exact version for everything this project can pull in, as pip constraints.

    python scripts/lock.py > requirements.lock        (`make lock`)

Versions are those installed beside the running interpreter, so run it in an environment with every extra and
the `dev` group. The result names no index, no platform and no build: `torch==2.13.0` is met by the plain
wheel on a GPU host and by a CPU build (`2.13.0+cpu`) alike, whichever pip has been told to prefer. What a
CUDA wheel pulls in beside it, that wheel pins itself.
"""

from __future__ import annotations

import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = "rebase-lora"
HEADER = """\
# Exact versions for Python 3.11, as constraints: pip install -c requirements.lock …
# Written by `make lock`; do not edit.
"""


def read_declared_requirements() -> list[Requirement]:
    """Everything that pyproject.toml names: dependencies, all extras, all dependency groups."""
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, groups = tables["project"], tables["dependency-groups"]
    lists = [project["dependencies"], *project["optional-dependencies"].values(), *groups.values()]
    return [Requirement(line) for lines in lists for line in lines]


def resolve_closure(requirements: list[Requirement]) -> dict[str, Version]:
    """Installed versions of the requirements and of all they require. Raises PackageNotFoundError."""
    pins: dict[str, Version] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    queue = list(requirements)
    while queue:
        requirement = queue.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen or name == PROJECT:
            continue
        seen.add((name, extras))
        distribution = metadata.distribution(name)
        pins[name] = Version(distribution.version)
        for line in distribution.requires or ():
            needed = Requirement(line)
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in (extras or {""})):
                queue.append(needed)
    return pins


def render(pins: dict[str, Version]) -> str:
    """The lock file: sorted, without local version labels."""
    return HEADER + "".join(f"{name}=={pins[name].public}\n" for name in sorted(pins))


def main() -> None:
    """Print the lock file; say what is missing instead of leaving it out."""
    try:
        sys.stdout.write(render(resolve_closure(read_declared_requirements())))
    except metadata.PackageNotFoundError as exc:
        sys.exit(f"{exc.name} is not installed here: run `make setup` with every extra first")


if __name__ == "__main__":
    main()
