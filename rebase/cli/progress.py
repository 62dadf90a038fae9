"""Live progress of a job: one bar per phase on a terminal, otherwise one plain line per update."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from rebase.report.progress import NullReporter
from rebase.report.schema import Report
from rebase.schemas.states import Phase


@dataclass
class CliProgress(NullReporter):
    """A reporter that shows progress and keeps the latest evidence, to explain a rejection."""

    progress: PhaseProgress
    report: Report | None = None
    _phase: Phase | None = None
    _phase_started_at: float = 0.0

    def update(self, phase: Phase, done: int = 0, total: int | None = None, unit: str | None = None) -> None:
        """Show progress."""
        now = time.monotonic()
        if phase is not self._phase:
            self._phase, self._phase_started_at = phase, now
        eta_s = (now - self._phase_started_at) / done * (total - done) if done and total else None
        self.progress.update(phase.value, done, total, unit, eta_s)

    def report_evidence(self, report: Report) -> None:
        """Keep the evidence so far."""
        self.report = report


# Without a terminal, log at most one line per interval within a phase.
_LOG_INTERVAL_S = 5.0


class PhaseProgress:
    """Shows each `update`; phases are shown in the order in which they arrive."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None
        self._task: TaskID | None = None
        self._phase: str | None = None
        self._last_line = ""
        self._logged_at = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description:<13}"),
                BarColumn(bar_width=32),
                TextColumn("{task.fields[count]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[eta]}"),
                console=self._console,
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def finish(self) -> None:
        """The last phase has succeeded: fill its bar."""
        if self._bars is None or self._task is None:
            return
        task = next(task for task in self._bars.tasks if task.id == self._task)
        # Updates may be missed, and some phases have no count: a finished phase is shown as full anyway.
        total, unit = task.total or 1, task.fields["unit"]
        count = _format_count(total, task.total, unit)
        self._bars.update(self._task, total=total, completed=total, count=count, eta="")
        self._bars.stop_task(self._task)

    def update(
        self,
        phase: str,
        done: int = 0,
        total: int | None = None,
        unit: str | None = None,
        eta_s: float | None = None,
    ) -> None:
        """`done` of `total` units within `phase`; `eta_s` in seconds."""
        if self._bars is not None:
            self._draw(self._bars, phase, done, total, unit or "", eta_s)
        else:
            self._log(phase, done, total, unit or "")
        self._phase = phase

    def _draw(
        self, bars: Progress, phase: str, done: int, total: int | None, unit: str, eta_s: float | None
    ) -> None:
        if phase != self._phase or self._task is None:
            self.finish()
            self._task = bars.add_task(phase, total=total, unit=unit, count="", eta="")
        eta = f"about {eta_s:.0f} s left" if eta_s is not None and eta_s >= 1 else ""
        count = _format_count(done, total, unit)
        bars.update(self._task, completed=done, total=total, unit=unit, count=count, eta=eta)

    def _log(self, phase: str, done: int, total: int | None, unit: str) -> None:
        count = _format_count(done, total, unit)
        line = f"{phase}: {count}" if count else phase
        is_new = phase != self._phase or (total is not None and done >= total)
        if line == self._last_line or not (is_new or time.monotonic() - self._logged_at >= _LOG_INTERVAL_S):
            return
        self._last_line, self._logged_at = line, time.monotonic()
        self._console.print(Text(line))


def _format_count(done: float, total: float | None, unit: str) -> str:
    """`3/7 sites`, or nothing for a phase without a count."""
    return f"{done:.0f}/{total:.0f} {unit}".rstrip() if total else ""
