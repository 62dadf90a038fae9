"""Locks that keep a missing entry from being computed twice: a lock file within one machine, a Redis key
between machines.

Both only save work and are not needed for correctness: if a lock is unavailable (read-only folder, no Redis)
or held for too long, the caller computes the entry itself and the work is merely done twice.
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
    """Hold the lock file; stop waiting without it once `ready()` is true or after `wait_s`.

    The kernel releases the lock if its holder dies. The holder deletes the file before releasing it, so a
    lock is valid only if the path still refers to the locked file.
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
    """The same between machines: a key with a token and a lease, renewed by a thread while the body runs.

    If the holder dies, another takes over after at most `lease_s`. If its result cannot be shared (too large
    for Redis), it replaces the lock with a marker, and all waiting callers compute immediately.
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
