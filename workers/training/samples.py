"""Samples that a model wrote, which of them are usable, and the file in which a job keeps them.

The file grows by one line a batch, so that an interrupted job goes on after the last batch it has.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rebase.runtime import disk_errors
from workers.training.shift import Shift

_LEAST = 8  # tokens of a sample that was written from nothing
_GRAM, _WINDOW, _DISTINCT = 4, 64, 0.25  # a stretch with few different 4-grams is a loop


@dataclass(frozen=True, slots=True)
class Sample:
    """`text`: a prompt of `prompt` characters and what was written behind it; `spans`: (start, end) of the
    written tokens in the text; `teacher`, `source`: their log-probabilities by S+Δ and by S; `ended`: by EOS,
    not by length; `shift`: what the adapter changes at its places, where that is asked for."""

    text: str
    prompt: int
    spans: list[tuple[int, int]]
    teacher: list[float]
    source: list[float]
    ended: bool
    shift: Shift | None = None

    @property
    def scores(self) -> list[float]:
        """log P(S+Δ) − log P(S) of each written token."""
        return [ours - alone for ours, alone in zip(self.teacher, self.source, strict=True)]


@dataclass(slots=True)
class Written:
    """Samples in the order in which they were written, and how many were dropped for which flaw. `drawn`:
    tokens in all; `batches`: how many were written."""

    samples: list[Sample] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    drawn: int = 0
    batches: int = 0

    @property
    def tokens(self) -> int:
        """Written tokens of the samples that are used."""
        return sum(len(sample.spans) for sample in self.samples)

    def add(self, samples: Sequence[Sample], dropped: Counter[str], drawn: int) -> None:
        """One more batch."""
        self.samples += samples
        self.dropped += dropped
        self.drawn += drawn
        self.batches += 1


def flaw(text: str, ids: Sequence[int], *, prompted: bool) -> str | None:
    """Why what was written is not used: `empty`, `short`, `broken` (no whole characters) or `repeats`."""
    if not text.strip():
        return "empty"
    if not prompted and len(ids) < _LEAST:
        return "short"
    if "\ufffd" in text:
        return "broken"
    for start in range(0, max(len(ids) - _WINDOW, 0) + 1, _WINDOW // 2):
        stretch = ids[start : start + _WINDOW]
        grams = [tuple(stretch[at : at + _GRAM]) for at in range(len(stretch) - _GRAM + 1)]
        if len(stretch) > _WINDOW // 4 and len(set(grams)) < _DISTINCT * len(grams):
            return "repeats"
    return None


class Journal:
    """The file of one job's samples, or nothing where `path` is None. Lines of another identity, and from the
    first damaged one on, count as not there."""

    def __init__(self, path: Path | None, identity: str) -> None:
        self.path, self.identity = path, identity

    def read(self) -> Written:
        """What was written before."""
        found = Written()
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path and self.path.exists() else []
        size = 0
        for line in lines:
            batch = self._parsed(line, found.batches)
            if batch is None:
                break
            found.add(*batch)
            size += len(line)
        if self.path and size < sum(map(len, lines)):
            with self.path.open("r+b") as file:
                file.truncate(size)
        return found

    def append(self, number: int, samples: Sequence[Sample], dropped: Counter[str], drawn: int) -> None:
        """One more batch. Raises DiskFull."""
        if self.path is None:
            return
        batch = {"of": self.identity, "batch": number, "drawn": drawn, "dropped": dict(dropped)}
        line = json.dumps({**batch, "samples": [asdict(sample) for sample in samples]}) + "\n"
        with disk_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(line.encode())

    def _parsed(self, line: bytes, number: int) -> tuple[list[Sample], Counter[str], int] | None:
        try:
            batch: dict[str, Any] = json.loads(line)
            if not line.endswith(b"\n") or batch["of"] != self.identity or batch["batch"] != number:
                return None
            samples = [
                Sample(
                    **{
                        **fields,
                        "spans": [(start, end) for start, end in fields["spans"]],
                        "shift": Shift(**fields["shift"]) if fields["shift"] else None,
                    }
                )
                for fields in batch["samples"]
            ]
            return samples, Counter(batch["dropped"]), int(batch["drawn"])
        except (ValueError, KeyError, TypeError):
            return None
