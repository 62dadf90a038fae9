"""A corpus from a dataset repo of the hub: pinned like every repo, and read no further than it is asked
for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from rebase.errors import RebaseError, RequestInvalid
from rebase.schemas.repos import CorpusSpec
from workers.corpus.choose import choose_files
from workers.corpus.corpus import Corpus
from workers.corpus.rows import iter_documents
from workers.corpus.stream import ByteSourceStream, ReadBudget
from workers.hub.port import Hub, PinnedRepo
from workers.reading import read_license

_EXPECTED_BYTES_PER_DOCUMENT = (
    8192  # bytes a document, with what the file holds beside it: a guess at what will be fetched
)


def read_dataset(spec: CorpusSpec, hub: Hub) -> Corpus:
    """The first `n` documents of the split. Raises errors of the hub, and RequestInvalid, FileMissing,
    UnsafeFile or NotAvailable that point into `corpus`."""
    try:
        hub.check_read(spec.repo_id, kind="dataset")
        pinned = hub.resolve(spec, kind="dataset")
        selected = tuple(_iter_selected(spec, hub, pinned))
    except RebaseError as exc:
        exc.pointer = exc.pointer or "/corpus"
        raise
    if not selected:
        raise RequestInvalid(
            f"{pinned} holds no text in column '{spec.column}' of split '{spec.split}'.",
            hint="Name another column or split.",
            pointer="/corpus/column",
        )
    parts = [part for part in (spec.config, spec.split, spec.column) if part is not None]
    with suppress(RebaseError):  # a card that cannot be read names no licence
        return Corpus.from_documents(selected, f"{pinned} ({', '.join(parts)})", read_license(hub, pinned))
    return Corpus.from_documents(selected, f"{pinned} ({', '.join(parts)})")


def _iter_selected(spec: CorpusSpec, hub: Hub, pinned: PinnedRepo) -> Iterator[str]:
    """Stripped, none empty, none twice, `n` of them if there are as many."""
    seen: set[str] = set()
    budget = ReadBudget()
    for path in choose_files(pinned.files, spec):
        source = hub.open(pinned, path, expected_bytes=_EXPECTED_BYTES_PER_DOCUMENT * (spec.n - len(seen)))
        for document in iter_documents(ByteSourceStream(source, path, budget), path, spec.column):
            text = document.strip()
            if text and text not in seen:
                seen.add(text)
                yield text
            if len(seen) == spec.n:
                return
