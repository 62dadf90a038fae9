"""How far an evaluation is, told to whoever watches, who may stop it."""

from __future__ import annotations

from dataclasses import dataclass

from rebase.report.progress import ProgressReporter
from rebase.schemas.states import Phase


@dataclass
class ExampleProgress:
    """Examples done of those expected (None: nobody knows). A model that works on an example counts once."""

    reporter: ProgressReporter
    total: int | None = None
    done: int = 0
    phase: Phase = Phase.EVALUATING

    def start(self, total: int | None) -> None:
        """From here on so many are expected."""
        self.total, self.done = total, 0
        self.add(0)

    def add(self, count: int) -> None:
        """So many more are done. Raises what the watch raises."""
        self.done += count
        self.reporter.update(self.phase, self.done, self.total, "examples")
