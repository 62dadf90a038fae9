"""Accidents of a local hub, as programs of their own: a crash at every step of a commit, and a disk that is
full.

`python -m support.hub_faults crashes ROOT FOLDER`: commits FOLDER again and again, each time dying one
step later. `python -m support.hub_faults full ROOT FOLDER`: commits FOLDER where no file may grow beyond
1 kB. `python -m support.hub_faults fetch URL TOKEN REPO PATH CACHE`: downloads under the same limit.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from pathlib import Path

from rebase.errors import RebaseError
from rebase.hub.content_hash import hash_file
from rebase.hub.local import LocalHub
from rebase.schemas.repos import RepoRef

REPO = "acme/out"
STEPS = ("os.rename", "os.mkdir", "os.link", "os.chmod", "open", "tempfile.mkdtemp", "shutil.copyfile")


def crashes(root: Path, folder: Path) -> None:
    """Prints a JSON object: steps tried, and how many left the old and the new head behind."""
    hub = LocalHub(root / "hub")
    old = hub.publish(REPO, folder, message="first", parent=None, private=True, create_pr=False).commit
    (folder / "new.txt").write_text("new")
    seen = {"steps": 0, "old": 0, "new": 0}
    while True:
        trial = root / f"trial-{seen['steps']}"
        shutil.copytree(root / "hub", trial)
        finished = _publish_and_die(trial, folder, old, seen["steps"])
        head = _check(trial)
        seen["new" if head != old else "old"] += 1
        _recover(trial, folder, head)
        shutil.rmtree(trial)
        if finished:
            break
        seen["steps"] += 1
    print(json.dumps(seen))


def _publish_and_die(root: Path, folder: Path, parent: str, after: int) -> bool:
    """Commit in a child that vanishes at its `after`-th step on the file system; True when it got to the
    end.
    """
    child = os.fork()
    if child == 0:
        left = [after]

        def hook(event: str, _: object) -> None:
            if event in STEPS:
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)

        hub = LocalHub(root)
        sys.addaudithook(hook)
        hub.publish(REPO, folder, message="second", parent=parent, private=True, create_pr=False)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _check(root: Path) -> str:
    """The head's sha, once every file of it was found to be what its record says."""
    hub = LocalHub(root)
    head = hub.get_latest(REPO)
    assert head is not None
    record = json.loads((root / REPO / "commits" / f"{head.sha}.json").read_text())
    for path, size in head.files.items():
        file = hub.fetch(head, path)
        assert (file.stat().st_size, hash_file(file)) == (size, record["files"][path]["sha256"])
    return head.sha


def _recover(root: Path, folder: Path, head: str) -> None:
    """The next commit works and clears up."""
    hub = LocalHub(root)
    hub.publish(REPO, folder, message="third", parent=head, private=True, create_pr=False)
    assert not list((root / REPO).glob(".incoming-*"))
    assert _check(root) != head


def full(root: Path, folder: Path) -> None:
    """Prints the error's code, and whether the repo is as before."""
    hub = LocalHub(root)
    before = hub.get_latest(REPO)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        hub.publish(
            REPO, folder, message="x", parent=before.sha if before else None, private=True, create_pr=False
        )
    except RebaseError as exc:
        print(
            exc.code,
            exc.retryable,
            LocalHub(root).get_latest(REPO) == before,
            *(root / REPO).glob(".incoming-*"),
        )


def fetch(url: str, token: str, repo_id: str, path: str, cache: Path) -> None:
    """Prints the error's code."""
    from rebase.hub.remote import RemoteHub

    hub = RemoteHub(token, url, cache, timeout_s=5, wait_s=0.01)
    repo = hub.resolve(RepoRef(repo_id=repo_id))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        hub.fetch(repo, path)
    except RebaseError as exc:
        print(exc.code, exc.retryable)


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "fetch":
        fetch(words[0], words[1], words[2], words[3], Path(words[4]))
    else:
        {"crashes": crashes, "full": full}[what](Path(words[0]), Path(words[1]))
