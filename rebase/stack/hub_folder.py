"""The local hub folder of an embedded stack, and the bundled example repos in it."""

from __future__ import annotations

import filecmp
import shutil
import tempfile
from pathlib import Path


def examples_folder() -> Path | None:
    """`examples/` of the checkout that this package is installed from; None for an installed wheel."""
    folder = Path(__file__).resolve().parents[2] / "examples"
    return folder if (folder / "hub").is_dir() else None


def seed(hub: Path, examples: Path) -> None:
    """Copy each bundled repo into `hub` where it is absent or another version; nothing else there is
    touched."""
    for repo in sorted(path for path in (examples / "hub").glob("*/*") if path.is_dir()):
        goal = hub / repo.relative_to(examples / "hub")
        if _same(repo, goal):
            continue
        goal.parent.mkdir(parents=True, exist_ok=True)
        # Dot-folders are no repos, so a crash between here and the rename leaves nothing that is served.
        with tempfile.TemporaryDirectory(prefix=".incoming-", dir=hub) as scratch:
            shutil.copytree(repo, Path(scratch) / "repo")
            if goal.exists():
                goal.replace(Path(scratch) / "old")
            (Path(scratch) / "repo").replace(goal)


def _same(repo: Path, copy: Path) -> bool:
    names = sorted(path.relative_to(repo) for path in repo.rglob("*") if path.is_file())
    if not copy.is_dir() or sorted(p.relative_to(copy) for p in copy.rglob("*") if p.is_file()) != names:
        return False
    _, different, unreadable = filecmp.cmpfiles(repo, copy, [str(name) for name in names], shallow=False)
    return not different and not unreadable
