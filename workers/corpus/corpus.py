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
    licence: str | None

    @classmethod
    def of(cls, documents: Iterable[str], name: str, licence: str | None = None) -> Corpus:
        """Stripped; empty ones and repetitions are left out."""
        kept = tuple(dict.fromkeys(text for document in documents if (text := document.strip())))
        sha = hashlib.sha256()
        for text in kept:
            data = text.encode()
            sha.update(f"{len(data)}:".encode() + data)
        return cls(kept, sha.hexdigest(), name, licence)
