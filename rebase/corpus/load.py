"""Loads the corpus of a request: the bundled one, a file, or a split of a dataset repo.

The files of a split are found by name:

    data/train-00000-of-00002.parquet     wikitext/train/0000.parquet     en/test.jsonl     train.csv

A file belongs to a split if its name or a parent folder contains the split's name as a whole word, and to a
configuration if a folder or the start of its name equals the configuration's. This is the Hub's naming
convention; file names in dataset cards are not read, and scripts in a repo are never run.
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
from rebase.schemas.repos import CorpusSpec, RepoRef

FORMATS = (".parquet", ".jsonl", ".json", ".csv", ".txt")  # in order of preference
_NON_DATA_PATTERN = re.compile(
    r"(^|/)(dataset_infos?|config|licen[cs]e|requirements|readme|state)\.[a-z]+$", re.I
)
_SHARD_PATTERN = (
    r"(?:[-._ ]?\d+)?(?:-of-\d+)?(?:-[0-9a-f]{16})?"  # 00000-of-00002, in older datasets followed by a hash
)
_MAX_LISTED = 12


def choose_files(paths: Iterable[str], spec: CorpusSpec) -> list[str]:
    """The split's files in order. Raises FileMissing, listing the available files, unless exactly one set of
    files matches."""
    data = sorted(path for path in paths if _is_data_file(path))
    if not data:
        raise FileMissing(
            f"{spec.repo_id} has no data file in a supported format ({', '.join(FORMATS)}).",
            hint="Datasets built by a script are not supported; use one whose files contain the rows.",
            pointer="/corpus/repo_id",
        )
    in_config = [path for path in data if spec.config is None or _is_in_config(path, spec.config)]
    matches = [path for path in in_config if _compile_split_pattern(spec.split).search(_strip_suffix(path))]
    if not matches and spec.split == "train" and len(in_config) == 1:
        return in_config  # a single file without a split in its name counts as `train`
    groups: dict[str, list[str]] = {}
    for path in matches:
        groups.setdefault(_compile_split_pattern(spec.split).sub("/", _strip_suffix(path)), []).append(path)
    if len(groups) == 1:
        return _keep_best_format(matches)
    what = "no file of" if not groups else f"{len(groups)} sets of files that match"
    description = f"split '{spec.split}'" + (f" of configuration '{spec.config}'" if spec.config else "")
    ellipsis = ", …" if len(data) > _MAX_LISTED else ""
    raise FileMissing(
        f"{spec.repo_id} has {what} {description}. "
        f"Its data files: {', '.join(data[:_MAX_LISTED])}{ellipsis}.",
        hint="Set the configuration (a folder or a prefix of the file names) and the split.",
        pointer="/corpus/config" if groups else "/corpus/split",
    )


def _is_data_file(path: str) -> bool:
    hidden = any(part.startswith(".") for part in path.split("/"))
    return PurePosixPath(path).suffix in FORMATS and not hidden and not _NON_DATA_PATTERN.search(path)


def _strip_suffix(path: str) -> str:
    return path.removesuffix(PurePosixPath(path).suffix)


def _compile_split_pattern(name: str) -> re.Pattern[str]:
    """Matches the split in a path without suffix: followed by a shard number, or as a folder."""
    return re.compile(rf"(?:^|[-._ /]){re.escape(name)}(?:{_SHARD_PATTERN}$|/.*$)")


def _is_in_config(path: str, config: str) -> bool:
    return re.search(rf"(?:^|/){re.escape(config)}(?:/|[-._ ][^/]*$)", path) is not None


def _keep_best_format(paths: list[str]) -> list[str]:
    """Keep one format, as the same rows may be available in several."""
    best = min((PurePosixPath(path).suffix for path in paths), key=FORMATS.index)
    return [path for path in paths if path.endswith(best)]


_EXPECTED_BYTES_PER_DOCUMENT = 8192  # estimated bytes to fetch per document, including other columns


def read_dataset(spec: CorpusSpec, hub: Hub) -> Corpus:
    """The first `spec.n` documents of the split. Raises hub errors, RequestInvalid, FileMissing, UnsafeFile
    or NotAvailable, all pointing into `corpus`."""
    try:
        hub.check_read(spec.repo_id, kind="dataset")
        pinned = hub.resolve(RepoRef(repo_id=spec.repo_id, revision=spec.revision), kind="dataset")
        selected = tuple(_iter_selected(spec, hub, pinned))
    except RebaseError as exc:
        exc.pointer = exc.pointer or "/corpus"
        raise
    if not selected:
        raise RequestInvalid(
            f"{pinned} has no text in column '{spec.column}' of split '{spec.split}'.",
            hint="Use another column or split.",
            pointer="/corpus/column",
        )
    parts = [part for part in (spec.config, spec.split, spec.column) if part is not None]
    with suppress(RebaseError):  # an unreadable card counts as having no licence
        return Corpus.from_documents(selected, f"{pinned} ({', '.join(parts)})", read_license(hub, pinned))
    return Corpus.from_documents(selected, f"{pinned} ({', '.join(parts)})")


def _iter_selected(spec: CorpusSpec, hub: Hub, pinned: PinnedRepo) -> Iterator[str]:
    """Up to `spec.n` distinct, non-empty, stripped documents."""
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
    """The documents of the file, or of the dataset that `spec` names on `hub`, or the bundled ones.

    Raises RequestInvalid if the file is unusable or both a file and a dataset are given; for datasets also
    hub errors.
    """
    if spec is None:
        return load_default_corpus() if file is None else read_corpus_file(file)
    if hub is None:
        raise TypeError("reading a dataset requires a hub")
    if file is not None:
        raise RequestInvalid(
            "Two texts are given, by --corpus and by the request's 'corpus'.", pointer="/corpus"
        )
    return read_dataset(spec, hub)
