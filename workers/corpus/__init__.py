"""Texts that both bases read: the project's own, or a file of whoever runs a command here."""

from __future__ import annotations

from pathlib import Path

from workers.corpus.bundled import default_corpus
from workers.corpus.corpus import Corpus
from workers.corpus.local import read_file
from workers.corpus.primes import primes

__all__ = ["Corpus", "default_corpus", "primes", "read_file", "texts"]


def texts(file: Path | None) -> Corpus:
    """The file's documents, or the bundled ones. Raises RequestInvalid for a file that cannot be used."""
    return default_corpus() if file is None else read_file(file)
