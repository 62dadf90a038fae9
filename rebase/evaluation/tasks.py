"""Scores of benchmark tasks, and the interface of the harness that runs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from rebase.evaluation.scoring import ExampleProgress
from rebase.models.causal_lm import CausalLM
from rebase.report.schema import TaskInfo


@dataclass(frozen=True, slots=True)
class TaskScores:
    """One metric of one task. `per_document`: a value per document if the metric is their mean; otherwise
    empty."""

    task: str
    metric: str
    value: float
    documents: int
    per_document: tuple[float, ...]
    higher_is_better: bool

    @property
    def name(self) -> str:
        """The metric's name in the report."""
        return f"{self.task}/{self.metric}"


class Harness(Protocol):
    """A benchmark harness with the tasks of a request."""

    @property
    def tasks(self) -> tuple[TaskInfo, ...]:
        """The tasks run so far."""

    def run(self, base: CausalLM, progress: ExampleProgress) -> Mapping[str, TaskScores]:
        """Every metric of every task by name, for the model in its current state. Raises RequestInvalid."""
