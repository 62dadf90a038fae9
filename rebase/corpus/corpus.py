"""The `Corpus` type, and reading one from a local file of plain text or JSON lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rebase.errors import RequestInvalid


@dataclass(frozen=True, slots=True)
class Corpus:
    """Distinct, non-empty documents in order. `digest`: SHA-256 over them, in hex."""

    documents: tuple[str, ...]
    digest: str
    name: str
    license_id: str | None

    @classmethod
    def from_documents(cls, documents: Iterable[str], name: str, license_id: str | None = None) -> Corpus:
        """Build a corpus from stripped documents; empty ones and duplicates are dropped."""
        unique = tuple(dict.fromkeys(text for document in documents if (text := document.strip())))
        sha = hashlib.sha256()
        for text in unique:
            data = text.encode()
            sha.update(f"{len(data)}:".encode() + data)
        return cls(unique, sha.hexdigest(), name, license_id)


MAX_FILE_BYTES = 256 * 2**20
_TEXT_FIELD = "text"


def read_corpus_file(path: Path) -> Corpus:
    """Read a file: `.jsonl` has one object per line with its text under `text`; in any other file, documents
    are separated by empty lines. Raises RequestInvalid naming the file and, for JSON, the line."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise _make_unusable_error(path, f"has more than {MAX_FILE_BYTES} bytes", "Use a part of it.")
        text = path.read_text("utf-8")
    except UnicodeDecodeError as exc:
        raise _make_unusable_error(path, "is not UTF-8 text", "Save it as UTF-8.") from exc
    except OSError as exc:
        raise _make_unusable_error(path, f"cannot be read: {exc.strerror}", "Check its name.") from exc
    is_jsonl = path.suffix == ".jsonl"
    corpus = Corpus.from_documents(_iter_jsonl(path, text) if is_jsonl else text.split("\n\n"), path.name)
    if not corpus.documents:
        raise _make_unusable_error(path, "contains no text", "Use a file that contains text.")
    return corpus


def _iter_jsonl(path: Path, text: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), 1):  # JSON strings may contain other line breaks
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise _make_unusable_error(
                path, f"is not valid JSON in line {number}", "Put one JSON object on each line."
            ) from exc
        document = record.get(_TEXT_FIELD) if isinstance(record, dict) else None
        if not isinstance(document, str):
            hint = f'Each line must look like {{"{_TEXT_FIELD}": "…"}}.'
            raise _make_unusable_error(path, f"has no string field '{_TEXT_FIELD}' in line {number}", hint)
        yield document.encode("utf-8", "replace").decode()  # lone surrogates are valid in JSON


def _make_unusable_error(path: Path, problem: str, hint: str) -> RequestInvalid:
    return RequestInvalid(f"The corpus {path} {problem}.", hint=hint, pointer="/corpus")
