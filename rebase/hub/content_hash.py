"""Content hashes of files, commits and models.

A commit's sha is the first 40 hex digits of the SHA-256 of its canonical JSON {parent, message, files}. It
includes no time and no author, so the same history has the same shas on every machine. A plain folder is
hashed as if it had been committed once, without a parent and with an empty message.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SHA_PATTERN = re.compile(r"^[0-9a-f]{40}$")
_CHUNK = 1 << 20
_MODEL_FILE_SUFFIXES = (".safetensors", ".json", ".model", ".txt", ".jinja")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of a commit: size in bytes and SHA-256 of its content, 64 hex digits."""

    size: int
    sha256: str


def compute_commit_sha(parent: str | None, message: str, files: Mapping[str, FileRecord]) -> str:
    """The sha of a commit, 40 lowercase hex digits."""
    canonical = json.dumps(
        build_commit_record(parent, message, files), sort_keys=True, separators=(",", ":"), ensure_ascii=True
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:40]


def build_commit_record(
    parent: str | None, message: str, files: Mapping[str, FileRecord]
) -> dict[str, object]:
    """The JSON contents of a commit's file."""
    rows = {path: {"size": file.size, "sha256": file.sha256} for path, file in sorted(files.items())}
    return {"parent": parent, "message": message, "files": rows}


def compute_model_digest(hashes: Mapping[str, str]) -> str:
    """A digest of a model's weights, configs and tokenizer, computed from its file hashes. It does not depend
    on cards, pictures and licences."""
    model_files = {
        path: digest for path, digest in sorted(hashes.items()) if path.endswith(_MODEL_FILE_SUFFIXES)
    }
    return hashlib.sha256(json.dumps(model_files, sort_keys=True).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class HashCache:
    """Caches content hashes, keyed by path, size, modification and change time, and inode.

    Hashing several gigabytes takes seconds, so `folder` persists the hashes between processes. An entry that
    cannot be read, written or validated only means hashing again.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._known: dict[tuple[str, str], str] = {}

    def get_sha256(self, path: Path, info: os.stat_result) -> str:
        """The hash of the file at `path`, whose stat result is `info`."""
        stamp = f"{info.st_size}-{info.st_mtime_ns}-{info.st_ctime_ns}-{info.st_ino}"
        key = (str(path), stamp)
        digest = self._known.get(key) or self._load(*key)
        if digest is None:
            digest = hash_file(path)
            self._save(*key, digest)
        self._known[key] = digest
        return digest

    def _get_entry_path(self, path: str) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:40]

    def _load(self, path: str, stamp: str) -> str | None:
        entry = self._get_entry_path(path)
        if entry is None:
            return None
        try:
            known_stamp, _, digest = entry.read_text().partition(" ")
        except (OSError, UnicodeDecodeError):
            return None
        return digest if known_stamp == stamp and re.fullmatch(r"[0-9a-f]{64}", digest) else None

    def _save(self, path: str, stamp: str, digest: str) -> None:
        entry = self._get_entry_path(path)
        if entry is None:
            return
        with suppress(OSError):
            entry.parent.mkdir(parents=True, exist_ok=True)
            fd, temporary = tempfile.mkstemp(dir=entry.parent)
            with os.fdopen(fd, "w") as stream:
                stream.write(f"{stamp} {digest}")
            Path(temporary).replace(entry)
