"""How a running pipeline tells what it is doing, and hears that it should stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rebase.schemas.states import Phase
from workers.report import Report


@dataclass(frozen=True, slots=True)
class Resolved:
    """What the request's names mean right now: immutable commits, and where the result will go."""

    adapter_sha: str
    source_repo: str
    source_sha: str
    target_sha: str
    output_repo: str | None


class Watch(Protocol):
    """Every call may raise `Cancelled`, `LeaseLost` or `TimeLimit`; the pipeline lets them through."""

    def step(self, phase: Phase, done: int = 0, total: int | None = None, unit: str | None = None) -> None:
        """Progress inside a phase; `done` of `total` units, where the phase can be counted."""

    def resolved(self, resolved: Resolved) -> None:
        """The revisions are pinned."""

    def diagnosed(self, report: Report) -> None:
        """Evidence so far; called after the pre-check and again with the sites' rows."""


class Silent:
    """A watch that records nothing and never stops the run."""

    def step(self, phase: Phase, done: int = 0, total: int | None = None, unit: str | None = None) -> None:
        """Nothing to tell."""

    def resolved(self, resolved: Resolved) -> None:
        """Nothing to tell."""

    def diagnosed(self, report: Report) -> None:
        """Nothing to tell."""
