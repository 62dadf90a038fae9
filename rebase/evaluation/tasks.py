"""What named benchmark tasks give: scores, and the harness that runs them behind one interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from rebase.evaluation.scoring import ExampleProgress
from rebase.models.causal_lm import TextModel
from rebase.report.schema import TaskInfo


@dataclass(frozen=True, slots=True)
class TaskScores:
    """One metric of one task. `each`: a number per document, where the metric is their mean; else empty, and
    `value` is all that is known."""

    task: str
    metric: str
    value: float
    documents: int
    per_document: tuple[float, ...]
    higher_is_better: bool

    @property
    def name(self) -> str:
        """As the report calls it."""
        return f"{self.task}/{self.metric}"


class Harness(Protocol):
    """The harness with a request's tasks chosen."""

    @property
    def tasks(self) -> tuple[TaskInfo, ...]:
        """What was run, as far as anything was."""

    def run(self, base: TextModel, progress: ExampleProgress) -> Mapping[str, TaskScores]:
        """Every metric of every task by its name, of this model as it now is. Raises RequestInvalid."""
