"""The disk tier: one file per entry, shared by every process on the machine, with LRU eviction by size.

Layout under the folder:

    entries/ab/cd/<digest>.safetensors   an entry; its modification time is when it was last used
    entries/ab/cd/.<…>.part              an entry being written, at its full size from the start
    locks/<digest>.lock                  exists only while that entry is being computed
    usage                                bytes in `entries/`, a decimal number under its own lock

The size is not measured at every write. Each write first adds to `usage`; only when that exceeds the limit is
the folder scanned, evicted down to 90 % of the limit, and `usage` reset to the scanned size. So there is one
scan per tenth of the limit written, and a process that dies between the two steps leaves the number too high,
never too low. Access times are not used: not every mount records them, and a listing or a backup would count
as a use.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from rebase.cache.circuit_breaker import CircuitBreaker
from rebase.cache.entry import CorruptEntryError

T = TypeVar("T")

_SUFFIX = ".safetensors"
_EVICTION_TARGET = 0.9  # share of the limit that remains after an eviction
_STALE_TEMP_S = 3600.0  # a temporary file this old belongs to a dead process


@dataclass(frozen=True, slots=True)
class EntryFile:
    """An entry on disk, as described by its file's metadata."""

    path: Path
    bytes: int
    last_used: float  # seconds since the epoch


class DiskTier:
    """Stores bytes by digest. `get`, `has` and `put` do not raise on disk errors: they miss or do nothing."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._entries = folder / "entries"
        self._usage = folder / "usage"
        self._read_breaker = CircuitBreaker("disk read", cool_off_s=0.0)
        self._write_breaker = CircuitBreaker("disk write")

    @property
    def writable(self) -> bool:
        """False if the tier is turned off or a write failed recently."""
        return self.max_bytes > 0 and not self._write_breaker.is_open

    def get(self, digest: str, decode: Callable[[BinaryIO, int], T]) -> T | None:
        """The decoded entry; None if there is none or it is corrupt (in which case it is removed)."""
        path = self._path(digest)
        with self._read_breaker.guard(OSError):
            try:
                with path.open("rb") as file:
                    size = os.fstat(file.fileno()).st_size
                    value = decode(file, size)
            except FileNotFoundError:
                return None
            except CorruptEntryError:
                self._remove(path)
                return None
            _touch(path)
            return value
        return None

    def has(self, digest: str) -> bool:
        """Whether the entry exists; it may be corrupt."""
        with suppress(OSError):
            return self._path(digest).exists()
        return False

    def put(self, digest: str, size: int, encode: Callable[[BinaryIO], None]) -> bool:
        """Store an entry of `size` bytes. Returns False if it was not stored, for whatever reason."""
        if not self.writable or size > self.max_bytes:
            return False
        with self._write_breaker.guard(OSError):
            path = self._path(digest)
            temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}.part"
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:
                    self._reserve(file, size)
                    encode(file)
                    file.flush()
                    os.fsync(file.fileno())
                with self._lock_usage():  # a scan must not see the file under both names, or neither
                    temporary.replace(path)
            except BaseException:
                with suppress(OSError):
                    temporary.unlink()
                raise
            return True
        return False

    def list_files(self) -> list[EntryFile]:
        """Every entry, least recently used first. Entries that disappear during the scan are left out."""
        entry_files = []
        for path in self._entries.glob(f"*/*/*{_SUFFIX}"):
            with suppress(OSError):
                stat = path.stat()
                entry_files.append(EntryFile(path, stat.st_size, stat.st_mtime))
        return sorted(entry_files, key=lambda f: (f.last_used, f.path.name))

    def prune(self, max_bytes: int) -> list[EntryFile]:
        """Remove the least recently used entries until at most `max_bytes` are left; returns those removed.

        Raises OSError if the folder cannot be written.
        """
        with self._lock_usage() as write:
            removed, remaining = self._evict(max_bytes)
            write(remaining)
        return removed

    def _path(self, digest: str) -> Path:
        return self._entries / digest[:2] / digest[2:4] / f"{digest}{_SUFFIX}"

    def _reserve(self, file: BinaryIO, size: int) -> None:
        """Account for `size` bytes about to be written to `file`, evicting first if they do not fit.

        The file is extended to its full size immediately, so that a concurrent scan counts it.
        """
        with self._lock_usage() as write:
            used = _read_usage(self._usage)
            if used is None or used + size > self.max_bytes:
                bound = self.max_bytes if used is None else int(self.max_bytes * _EVICTION_TARGET)
                _, used = self._evict(max(0, min(bound, self.max_bytes - size)))
            write(used + size)
            file.truncate(size)

    def _evict(self, max_bytes: int) -> tuple[list[EntryFile], int]:
        files = self.list_files()
        remaining, removed = sum(f.bytes for f in files) + self._count_partial_bytes(), []
        for file in files:
            if remaining <= max_bytes:
                break
            file.path.unlink(missing_ok=True)
            remaining -= file.bytes
            removed.append(file)
        return removed, remaining

    def _count_partial_bytes(self) -> int:
        """Bytes of partially written entries; stale ones of dead writers are removed."""
        total = 0
        for path in self._entries.glob("*/*/.*.part"):
            with suppress(OSError):
                stat = path.stat()
                if time.time() - stat.st_mtime > _STALE_TEMP_S:
                    path.unlink()
                else:
                    total += stat.st_size
        return total

    def _remove(self, path: Path) -> None:
        with suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            with self._lock_usage() as write:
                write(max(0, (_read_usage(self._usage) or 0) - size))

    @contextmanager
    def _lock_usage(self) -> Iterator[Callable[[int], None]]:
        """Lock the folder's usage file; yields a function that records the new total."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._usage.open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)

            def write(total: int) -> None:
                file.truncate(0)
                file.write(str(total).encode())

            yield write


def _touch(path: Path) -> None:
    """Record a use. A read-only folder still serves entries, but without tracking the order of use."""
    with suppress(OSError):
        os.utime(path)


def _read_usage(path: Path) -> int | None:
    """The recorded total; None if it is missing or not a number, so that a scan is needed."""
    try:
        return int(path.read_text() or "x")
    except (OSError, ValueError):
        return None
