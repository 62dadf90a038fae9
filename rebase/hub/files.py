"""File helpers for both hubs: random-access reads, safe listing, translation of write errors."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rebase.errors import DiskFull, FileMissing, HubUnavailable, OutputForbidden, UnsafeFile

# EFBIG: a file-size limit of the process or the file system; for a writer, the same as a full disk.
_DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_PERMISSION_ERRNOS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

# Below Linux's limit for one read() (0x7ffff000 bytes); larger reads would be split anyway.
_MAX_READ_BYTES = 1 << 30


@contextmanager
def write_errors(what: str) -> Iterator[None]:
    """Translate OS write errors into DiskFull, OutputForbidden or HubUnavailable about `what`."""
    try:
        yield
    except OSError as exc:
        if exc.errno in _DISK_FULL_ERRNOS:
            raise DiskFull(
                f"No space left while writing {what}.",
                hint="Free disk space on the machine that runs the worker; the job can then be retried.",
            ) from exc
        if exc.errno in _PERMISSION_ERRNOS:
            raise OutputForbidden(
                f"The worker has no permission to write {what}.",
                hint="Give the worker's user write access to the local hub folder, or choose another output.",
            ) from exc
        raise HubUnavailable(f"Writing {what} failed ({errno.errorcode.get(exc.errno or 0)}).") from exc


class FileSource:
    """Random access to one local file through `pread`; memory use depends on the read, not the file size."""

    def __init__(self, path: Path, name: str) -> None:
        """`name` is the file's name in errors, which must not show server paths to users."""
        self._path = path
        self._name = name
        try:
            self.size = path.stat().st_size
        except OSError as exc:
            raise FileMissing(f"{name} can no longer be opened.") from exc

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`."""
        self._check_range(offset, length)
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        self._check_range(offset, len(buffer))
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                done = 0
                while done < len(buffer):
                    count = os.preadv(fd, [buffer[done : done + _MAX_READ_BYTES]], offset + done)
                    if count == 0:
                        raise UnsafeFile(f"{self._name} was shortened while it was being read.")
                    done += count
            finally:
                os.close(fd)
        except OSError as exc:
            raise HubUnavailable(
                f"Reading {self._name} failed ({errno.errorcode.get(exc.errno or 0)})."
            ) from exc

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise UnsafeFile(
                f"{self._name} is truncated: bytes {offset} to {offset + length} were requested, but it "
                f"has {self.size}.",
                hint="Upload or download the file again.",
            )


def list_files(folder: Path, *, link_root: Path, name: str) -> dict[str, os.stat_result]:
    """Every regular file below `folder` as POSIX path → stat, sorted; dotfiles are left out.

    Links are followed only within `link_root` (a real path); a link that leads outside, or to something other
    than a regular file, raises UnsafeFile. `name` is the folder's name in errors.
    """
    files: dict[str, os.stat_result] = {}
    pending = [folder]
    while pending:
        with os.scandir(pending.pop()) as scan:
            entries = list(scan)
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            relative = path.relative_to(folder).as_posix()
            if entry.is_symlink() and not path.resolve().is_relative_to(link_root):
                raise UnsafeFile(
                    f"'{relative}' in {name} is a link to a file outside the folder.",
                    hint="Replace the link with the file itself.",
                )
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
                continue
            try:
                info = entry.stat()
            except OSError as exc:
                raise FileMissing(f"'{relative}' in {name} cannot be read.") from exc
            if not stat.S_ISREG(info.st_mode):
                raise UnsafeFile(f"'{relative}' in {name} is not a regular file.")
            files[relative] = info
    return dict(sorted(files.items()))
