"""The local hub folder of an embedded stack, and the bundled example repos in it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path


def find_examples_folder() -> Path | None:
    """`examples/` of the checkout that this package is installed from; None for an installed wheel."""
    folder = Path(__file__).resolve().parents[2] / "examples"
    return folder if (folder / "hub").is_dir() else None


def seed_hub(hub: Path, examples: Path) -> None:
    """Copy each bundled repo into `hub` where it is not yet; what people committed on top of it stays.

    A copy from a checkout whose bundle was another one is set aside in a dot-folder, which no hub serves.
    """
    for repo in sorted(path for path in (examples / "hub").glob("*/*") if path.is_dir()):
        destination = hub / repo.relative_to(examples / "hub")
        if _has_all_commits(destination, repo):
            continue
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".incoming-", dir=destination.parent) as scratch:
            shutil.copytree(repo, Path(scratch) / "repo")
            if destination.exists():
                backup_dir = tempfile.mkdtemp(prefix=f".{destination.name}-before-", dir=destination.parent)
                destination.replace(Path(backup_dir) / destination.name)
            (Path(scratch) / "repo").replace(destination)


def _has_all_commits(destination: Path, bundled: Path) -> bool:
    """Is every commit of the bundled repo in the copy? Commits are named by their content."""
    return all(
        (destination / commit.relative_to(bundled)).is_file() for commit in bundled.glob("commits/*.json")
    )
