"""Texts that both bases read: the project's own, a dataset of the hub, or a file of whoever runs a command
here."""

from __future__ import annotations

from pathlib import Path

from rebase.errors import RequestInvalid
from rebase.schemas.repos import CorpusSpec
from workers.corpus.bundled import default_corpus
from workers.corpus.corpus import Corpus
from workers.corpus.dataset import read_dataset
from workers.corpus.local import read_file
from workers.corpus.primes import primes
from workers.hub.port import HubPort

__all__ = ["Corpus", "default_corpus", "primes", "read_dataset", "read_file", "texts"]


def texts(file: Path | None, spec: CorpusSpec | None = None, hub: HubPort | None = None) -> Corpus:
    """The file's documents, or those of the dataset that `spec` names on `hub`, or the bundled ones.

    Raises RequestInvalid for a file that cannot be used or one beside a dataset; for datasets also errors of
    the hub.
    """
    if spec is None:
        return default_corpus() if file is None else read_file(file)
    if hub is None:
        raise TypeError("a dataset is read from a hub")
    if file is not None:
        raise RequestInvalid(
            "Two texts are named, by --corpus and by the request's 'corpus'.", pointer="/corpus"
        )
    return read_dataset(spec, hub)
