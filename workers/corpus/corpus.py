"""A corpus as a run holds it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents in order, none empty, none twice. `digest`: SHA-256 over them, in hex."""

    documents: tuple[str, ...]
    digest: str
    name: str
    license_id: str | None

    @classmethod
    def from_documents(cls, documents: Iterable[str], name: str, license_id: str | None = None) -> Corpus:
        """Stripped; empty ones and repetitions are left out."""
        unique = tuple(dict.fromkeys(text for document in documents if (text := document.strip())))
        sha = hashlib.sha256()
        for text in unique:
            data = text.encode()
            sha.update(f"{len(data)}:".encode() + data)
        return cls(unique, sha.hexdigest(), name, license_id)
