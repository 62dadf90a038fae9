"""Generated samples, the filter that rejects unusable ones, and the file that stores them.

The file grows by one line per batch, so that an interrupted job resumes after the last complete batch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rebase.runtime import disk_errors
from rebase.training.logit_shift import TeacherShift

_MIN_TOKENS = 8  # per sample generated without a prompt
_NGRAM_SIZE, _WINDOW, _MIN_DISTINCT_SHARE = 4, 64, 0.25  # a window with few distinct 4-grams is a loop


@dataclass(frozen=True, slots=True)
class Sample:
    """`text`: a prompt of `prompt` characters and its continuation; `spans`: (start, end) of the generated
    tokens in the text; `teacher`, `source`: their log-probabilities under S+Δ and S; `ended`: by EOS, not by
    length; `shift`: the adapter's shift at its positions, if requested."""

    text: str
    prompt: int
    spans: list[tuple[int, int]]
    teacher: list[float]
    source: list[float]
    ended: bool
    shift: TeacherShift | None = None

    @property
    def scores(self) -> list[float]:
        """log P(S+Δ) − log P(S) of each generated token."""
        return [
            teacher_logprob - source_logprob
            for teacher_logprob, source_logprob in zip(self.teacher, self.source, strict=True)
        ]


@dataclass(slots=True)
class SampleSet:
    """Samples in the order they were generated. `dropped`: counts by rejection reason; `drawn_tokens`: all
    tokens generated; `batch_count`: batches generated."""

    samples: list[Sample] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    drawn_tokens: int = 0
    batch_count: int = 0

    @property
    def tokens(self) -> int:
        """Generated tokens in the usable samples."""
        return sum(len(sample.spans) for sample in self.samples)

    def add(self, samples: Sequence[Sample], dropped: Counter[str], drawn_tokens: int) -> None:
        """Add a batch."""
        self.samples += samples
        self.dropped += dropped
        self.drawn_tokens += drawn_tokens
        self.batch_count += 1


def find_rejection_reason(text: str, ids: Sequence[int], *, has_prompt: bool) -> str | None:
    """Why a sample is unusable: `empty`, `short`, `broken` (incomplete characters) or `repeats`; None if it
    is usable."""
    if not text.strip():
        return "empty"
    if not has_prompt and len(ids) < _MIN_TOKENS:
        return "short"
    if "\ufffd" in text:
        return "broken"
    for start in range(0, max(len(ids) - _WINDOW, 0) + 1, _WINDOW // 2):
        window = ids[start : start + _WINDOW]
        ngrams = [tuple(window[at : at + _NGRAM_SIZE]) for at in range(len(window) - _NGRAM_SIZE + 1)]
        if len(window) > _WINDOW // 4 and len(set(ngrams)) < _MIN_DISTINCT_SHARE * len(ngrams):
            return "repeats"
    return None


class SampleLog:
    """The file of one job's samples; a no-op if `path` is None. Everything from the first line that is
    damaged or has another identity is discarded."""

    def __init__(self, path: Path | None, identity: str) -> None:
        self.path, self.identity = path, identity

    def read(self) -> SampleSet:
        """The samples stored so far."""
        sample_set = SampleSet()
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path and self.path.exists() else []
        valid_bytes = 0
        for line in lines:
            batch = self._parse_line(line, sample_set.batch_count)
            if batch is None:
                break
            sample_set.add(*batch)
            valid_bytes += len(line)
        if self.path and valid_bytes < sum(map(len, lines)):
            with self.path.open("r+b") as file:
                file.truncate(valid_bytes)
        return sample_set

    def append(
        self, number: int, samples: Sequence[Sample], dropped: Counter[str], drawn_tokens: int
    ) -> None:
        """Append a batch. Raises DiskFull."""
        if self.path is None:
            return
        batch = {"of": self.identity, "batch": number, "drawn": drawn_tokens, "dropped": dict(dropped)}
        line = json.dumps({**batch, "samples": [asdict(sample) for sample in samples]}) + "\n"
        with disk_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(line.encode())

    def _parse_line(self, line: bytes, number: int) -> tuple[list[Sample], Counter[str], int] | None:
        try:
            batch: dict[str, Any] = json.loads(line)
            if not line.endswith(b"\n") or batch["of"] != self.identity or batch["batch"] != number:
                return None
            samples = [
                Sample(
                    **{
                        **fields,
                        "spans": [(start, end) for start, end in fields["spans"]],
                        "shift": TeacherShift(**fields["shift"]) if fields["shift"] else None,
                    }
                )
                for fields in batch["samples"]
            ]
            return samples, Counter(batch["dropped"]), int(batch["drawn"])
        except (ValueError, KeyError, TypeError):
            return None
