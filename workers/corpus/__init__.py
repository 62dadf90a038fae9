"""Texts that both bases read: the project's own, a dataset of the hub, or a file of whoever runs a command
here."""

from __future__ import annotations

from pathlib import Path

from rebase.errors import RequestInvalid
from rebase.schemas.repos import CorpusSpec
from workers.corpus.bundled import load_default_corpus
from workers.corpus.corpus import Corpus
from workers.corpus.dataset import read_dataset
from workers.corpus.local import read_corpus_file
from workers.corpus.primes import load_semantic_primes
from workers.hub.port import Hub



def load_corpus(file: Path | None, spec: CorpusSpec | None = None, hub: Hub | None = None) -> Corpus:
    """The file's documents, or those of the dataset that `spec` names on `hub`, or the bundled ones.

    Raises RequestInvalid for a file that cannot be used or one beside a dataset; for datasets also errors of
    the hub.
    """
    if spec is None:
        return load_default_corpus() if file is None else read_corpus_file(file)
    if hub is None:
        raise TypeError("a dataset is read from a hub")
    if file is not None:
        raise RequestInvalid(
            "Two texts are named, by --corpus and by the request's 'corpus'.", pointer="/corpus"
        )
    return read_dataset(spec, hub)
