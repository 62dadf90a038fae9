"""Who computes a missing entry: a lock file between threads and processes of one machine, a Redis key
between machines.

Both are economies, never a matter of correctness: if a lock cannot be had (read-only folder, no Redis) or
is held for too long, the caller computes on its own and the work is merely done twice.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from rebase.cache.redis_tier import RedisTier
from rebase.retry import Backoff

_MIN_PAUSE_S, _MAX_PAUSE_S = 0.01, 0.2


@contextmanager
def file_lock(path: Path, ready: Callable[[], bool], wait_s: float) -> Iterator[None]:
    """Hold the lock file, or stop waiting once `ready()` says that waiting has become pointless.

    The kernel drops the lock when its holder dies. The holder deletes the file before it lets go, so a
    lock counts only if the path still leads to the file that was locked.
    """
    file = None
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in _poll(wait_s):
            file = _try_lock(path)
            if file is not None or ready():
                break
    try:
        yield
    finally:
        if file is not None:
            with suppress(OSError):
                path.unlink()
            file.close()


def _try_lock(path: Path) -> BinaryIO | None:
    file = path.open("ab", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        file.close()
        raise
    file.close()
    return None


@contextmanager
def redis_lock(
    tier: RedisTier, digest: str, ready: Callable[[], bool], *, lease_s: float, wait_s: float
) -> Iterator[None]:
    """The same between machines: a key with a token and a lease, renewed by a thread for as long as the
    body runs.

    A holder that dies stops renewing, so another takes over after at most `lease_s`. A holder whose
    result cannot be shared (too large for Redis) leaves a note instead of the lock, and everybody who
    waits computes at once.
    """
    token = secrets.token_hex(16)
    held = False
    for _ in _poll(wait_s):
        held = tier.lock(digest, token, lease_s)
        if held or not tier.available or tier.is_not_shared(digest) or ready():
            break
    if not held:
        yield
        return
    done = threading.Event()
    renewer = threading.Thread(
        target=_renew, args=(tier, digest, token, lease_s, done), name="cache-lease", daemon=True
    )
    renewer.start()
    try:
        yield
    finally:
        done.set()
        renewer.join()
        tier.unlock(digest, token)


def _renew(tier: RedisTier, digest: str, token: str, lease_s: float, done: threading.Event) -> None:
    while not done.wait(lease_s / 3):
        tier.renew(digest, token, lease_s)


def _poll(wait_s: float) -> Iterator[None]:
    """Try now, then after growing pauses, until `wait_s` have passed."""
    deadline = time.monotonic() + wait_s
    yield
    for delay in Backoff(_MIN_PAUSE_S, max_s=_MAX_PAUSE_S).delays():
        if time.monotonic() >= deadline:
            return
        time.sleep(delay)
        yield
