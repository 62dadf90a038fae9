"""How a running pipeline tells what it is doing, and hears that it should stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rebase.report.schema import Report
from rebase.schemas.states import Phase


@dataclass(frozen=True, slots=True)
class ResolvedRevisions:
    """What the request's names mean right now: immutable commits, and where the result will go."""

    adapter_sha: str
    source_repo: str
    source_sha: str
    target_sha: str
    output_repo: str | None


class ProgressReporter(Protocol):
    """Every call may raise `Cancelled`, `LeaseLost` or `TimeLimit`; the pipeline lets them through."""

    def update(self, phase: Phase, done: int = 0, total: int | None = None, unit: str | None = None) -> None:
        """Progress inside a phase; `done` of `total` units, where the phase can be counted."""

    def report_resolved(self, revisions: ResolvedRevisions) -> None:
        """The revisions are pinned."""

    def report_evidence(self, report: Report) -> None:
        """Evidence so far; called after the pre-check and again with the sites' rows."""


class NullReporter:
    """A watch that records nothing and never stops the run."""

    def update(self, phase: Phase, done: int = 0, total: int | None = None, unit: str | None = None) -> None:
        """Nothing to tell."""

    def report_resolved(self, revisions: ResolvedRevisions) -> None:
        """Nothing to tell."""

    def report_evidence(self, report: Report) -> None:
        """Nothing to tell."""
