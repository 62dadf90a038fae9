"""Named tasks of EleutherAI's lm-evaluation-harness, where this worker has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rebase.errors import NotAvailable
from rebase.schemas.evaluation import EvaluationSpec
from workers.evaluation.progress import ExampleProgress
from workers.models import TextModel

if TYPE_CHECKING:
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


def load_harness(spec: EvaluationSpec, tasks_dir: Path | None) -> Harness:
    """Raises NotAvailable without the package, RequestInvalid for a name that it does not know."""
    try:
        from workers.evaluation.harness import SelectedTasks  # noqa: PLC0415  (an extra, and slow to import)
    except ImportError as exc:
        raise NotAvailable(
            "Named tasks need lm-evaluation-harness, which this worker does not have.",
            hint="Install the extra there: pip install 'rebase-lora[worker,evaluation]'; or give examples.",
            pointer="/evaluate/tasks",
        ) from exc
    return SelectedTasks.load(spec, tasks_dir)
