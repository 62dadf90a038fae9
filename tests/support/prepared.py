"""Folders that are expensive to make and kept between runs: made once per machine, hash-checked at every use.

Everything lies in REBASE_TEST_MODELS (default ~/.cache/rebase-test-models) as `<entry>/files/…` with
`<entry>/record.json` beside it: the sha256 of each file and whatever the builder noted. An entry appears by
one rename, under a file lock, so several test runs may ask for it at once, and a killed build leaves nothing
that looks finished.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Build = Callable[[Path], dict[str, Any]]  # fills an empty folder; what it returns goes into the record


class NotPrepared(RuntimeError):
    """Something could not be fetched or made, or has the wrong hash; the message says which and why."""


def cache_dir() -> Path:
    """Where prepared folders live."""
    return Path(os.environ.get("REBASE_TEST_MODELS") or "~/.cache/rebase-test-models").expanduser().absolute()


def find(entry: str) -> Path | None:
    """The entry's `files` folder when it is there and every file hashes to what was noted."""
    return intact(cache_dir() / entry)


def intact(folder: Path) -> Path | None:
    """`folder/files` when it is there and every file hashes to what `folder/record.json` says."""
    files = folder / "files"
    try:
        noted: dict[str, str] = record(files)["sha256"]
        same = bool(noted) and all(file_sha256(files / name) == digest for name, digest in noted.items())
    except (OSError, ValueError, KeyError):
        return None
    return files if same else None


def make(entry: str, build: Build) -> Path:
    """The entry's `files` folder, built now unless it is there and intact."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    with (cache_dir() / f".{entry}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # goes with the process, however that ends
        return find(entry) or fill(cache_dir() / entry, build)


def fill(final: Path, build: Build) -> Path:
    """Fill a fresh folder, hash it and rename it into place, over what was there. One caller at a time."""
    for leftover in final.parent.glob(f".{final.name}.*"):
        if leftover.is_dir():  # of a build that was killed
            shutil.rmtree(leftover)
    scratch = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        files = scratch / "files"
        files.mkdir()
        noted = build(files)
        noted["sha256"] = {path.name: file_sha256(path) for path in sorted(files.iterdir())}
        (scratch / "record.json").write_text(json.dumps(noted, indent=1, sort_keys=True) + "\n")
        shutil.rmtree(final, ignore_errors=True)  # a damaged one, or one that is made anew
        scratch.rename(final)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return final / "files"


def prepared_by(entry: str, module: str, *arguments: str) -> Path:
    """The entry's `files` folder, made by `python -m module` if need be. Raises NotPrepared.

    A process of its own, so that gigabytes of weights and one-thread settings do not stay with the tests.
    """
    found = find(entry)
    if found is None:
        _run_module(module, *arguments)
        found = find(entry)
    if found is None:
        raise NotPrepared(f"`python -m {module}` left no intact {cache_dir() / entry}; delete that folder")
    return found


def record(files: Path) -> dict[str, Any]:
    """What was noted when a folder was built."""
    noted: dict[str, Any] = json.loads((files.parent / "record.json").read_text())
    return noted


def file_sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextmanager
def timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Note how long a step took and say so."""
    started = time.monotonic()
    yield
    seconds[step] = round(time.monotonic() - started, 1)
    print(f"  {step}: {seconds[step]} s", file=sys.stderr, flush=True)


def _run_module(module: str, *arguments: str) -> None:
    """`python -m module` on one thread with tests/ importable; its output goes to our stderr."""
    tests = str(Path(__file__).resolve().parent.parent)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [tests, os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=environment, stdout=sys.stderr, check=False)
    if done.returncode:
        raise NotPrepared(f"`python -m {module} {' '.join(arguments)}` failed; it says above what was wrong")
