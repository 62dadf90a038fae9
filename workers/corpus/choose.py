"""Which files of a dataset repo are the asked-for split, told from their names alone.

    data/train-00000-of-00002.parquet     wikitext/train/0000.parquet     en/test.jsonl     train.csv

A file belongs to a split that its name, or a folder above it, holds as a whole word, and to a configuration
that a folder or the beginning of its name is. The Hub names files so; what a card says of other names is not
read, and scripts of a repo are never run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from rebase.errors import FileMissing
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
        f"{spec.repo_id} has {what} {description}. Its data files: {', '.join(data[:_MAX_LISTED])}{ellipsis}.",
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
