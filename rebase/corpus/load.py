"""Which files of a dataset repo are the asked-for split, told from their names alone.

    data/train-00000-of-00002.parquet     wikitext/train/0000.parquet     en/test.jsonl     train.csv

A file belongs to a split that its name, or a folder above it, holds as a whole word, and to a configuration
that a folder or the beginning of its name is. The Hub names files so; what a card says of other names is not
read, and scripts of a repo are never run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from rebase.corpus.bundled import load_default_corpus
from rebase.corpus.corpus import Corpus, read_corpus_file
from rebase.corpus.dataset_rows import ByteSourceStream, ReadBudget, iter_documents
from rebase.errors import FileMissing, RebaseError, RequestInvalid
from rebase.hub.base import Hub, PinnedRepo
from rebase.hub.repo_metadata import read_license
from rebase.schemas.repos import CorpusSpec

FORMATS = (".parquet", ".jsonl", ".json", ".csv", ".txt")  # the first of them that a split comes in is read
_NON_DATA_PATTERN = re.compile(
    r"(^|/)(dataset_infos?|config|licen[cs]e|requirements|readme|state)\.[a-z]+$", re.I
)
_SHARD_PATTERN = (
    r"(?:[-._ ]?\d+)?(?:-of-\d+)?(?:-[0-9a-f]{16})?"  # 00000-of-00002, older ones with a hash behind
)
_MAX_LISTED = 12


def choose_files(paths: Iterable[str], spec: CorpusSpec) -> list[str]:
    """The split's files in their order. FileMissing, with what there is, unless exactly one set of files
    fits."""
    data = sorted(path for path in paths if _is_data_file(path))
    if not data:
        raise FileMissing(
            f"{spec.repo_id} has no data file that can be read here ({', '.join(FORMATS)}).",
            hint="Datasets that a script builds are not read; name one whose files hold the rows.",
            pointer="/corpus/repo_id",
        )
    in_config = [path for path in data if spec.config is None or _is_in_config(path, spec.config)]
    matches = [path for path in in_config if _compile_split_pattern(spec.split).search(_strip_suffix(path))]
    if not matches and spec.split == "train" and len(in_config) == 1:
        return in_config  # one file without a split in its name is a dataset of that split
    groups: dict[str, list[str]] = {}
    for path in matches:
        groups.setdefault(_compile_split_pattern(spec.split).sub("/", _strip_suffix(path)), []).append(path)
    if len(groups) == 1:
        return _keep_best_format(matches)
    what = "no file of" if not groups else f"{len(groups)} sets of files that could be"
    description = f"split '{spec.split}'" + (f" of configuration '{spec.config}'" if spec.config else "")
    ellipsis = ", …" if len(data) > _MAX_LISTED else ""
    raise FileMissing(
        f"{spec.repo_id} has {what} {description}. "
        f"Its data files: {', '.join(data[:_MAX_LISTED])}{ellipsis}.",
        hint="Name the configuration (a folder or the beginning of the name) and the split.",
        pointer="/corpus/config" if groups else "/corpus/split",
    )


def _is_data_file(path: str) -> bool:
    hidden = any(part.startswith(".") for part in path.split("/"))
    return PurePosixPath(path).suffix in FORMATS and not hidden and not _NON_DATA_PATTERN.search(path)


def _strip_suffix(path: str) -> str:
    return path.removesuffix(PurePosixPath(path).suffix)


def _compile_split_pattern(name: str) -> re.Pattern[str]:
    """Where a path without its suffix says the split: with a shard's number behind, or as a folder."""
    return re.compile(rf"(?:^|[-._ /]){re.escape(name)}(?:{_SHARD_PATTERN}$|/.*$)")


def _is_in_config(path: str, config: str) -> bool:
    return re.search(rf"(?:^|/){re.escape(config)}(?:/|[-._ ][^/]*$)", path) is not None


def _keep_best_format(paths: list[str]) -> list[str]:
    """The same rows may be there in several formats."""
    best = min((PurePosixPath(path).suffix for path in paths), key=FORMATS.index)
    return [path for path in paths if path.endswith(best)]


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
