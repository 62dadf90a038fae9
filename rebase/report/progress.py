"""The progress reporter: how the pipeline reports its state and is told to stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rebase.report.schema import Report
from rebase.schemas.states import Phase


@dataclass(frozen=True, slots=True)
class ResolvedRevisions:
    """The commits that the request's names resolved to, and where the result will go."""

    adapter_sha: str
    source_repo: str
    source_sha: str
    target_sha: str
    output_repo: str | None


class ProgressReporter(Protocol):
    """Receives a job's progress.

    Every call may raise `Cancelled`, `LeaseLost` or `TimeLimit`; the pipeline lets them propagate.
    """

    def update(self, phase: Phase, done: int = 0, total: int | None = None, unit: str | None = None) -> None:
        """Report progress within a phase: `done` of `total` units, if it can be counted."""

    def report_resolved(self, revisions: ResolvedRevisions) -> None:
        """Report the pinned revisions."""

    def report_evidence(self, report: Report) -> None:
        """Report the evidence so far: after the pre-check, and again with the site rows."""


class NullReporter:
    """A progress reporter that ignores everything and never stops the run."""

    def update(self, phase: Phase, done: int = 0, total: int | None = None, unit: str | None = None) -> None:
        """Ignore progress."""

    def report_resolved(self, revisions: ResolvedRevisions) -> None:
        """Ignore the revisions."""

    def report_evidence(self, report: Report) -> None:
        """Ignore the evidence."""
