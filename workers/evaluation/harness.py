"""EleutherAI's lm-evaluation-harness over our own running models. Needs the extra `evaluation`.

Tasks come from the harness's own registry, and from a folder of whoever runs this worker; a request only
picks names. Code of a dataset is never run, nor tasks that run what a model writes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NoReturn

import datasets
import evaluate
from billiard.exceptions import SoftTimeLimitExceeded
from lm_eval.api import task as task_module
from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from rebase.errors import HubUnavailable, RebaseError, RequestInvalid, TransferError
from rebase.report.schema import TaskInfo
from rebase.schemas.evaluation import EvaluationSpec
from workers.device import is_out_of_memory
from workers.evaluation.progress import Progress
from workers.evaluation.reading import Reader
from workers.evaluation.tasks import TaskScores
from workers.foretold import foretold
from workers.models import TextModel
from workers.training.sampling import opening

log = logging.getLogger(__name__)

_BLOCK = 32
_LONGEST_ANSWER = 256  # tokens, where a task says nothing; the harness's own default
_NEAR = 1e-6
_SHOWN = 8


class RunningModel(LM):  # type: ignore[misc]
    """What the harness asks of a model, answered by one of ours as it now is, on its own tokens."""

    def __init__(self, base: TextModel, progress: Progress) -> None:
        super().__init__()
        self.reader = Reader(base, divided=False)
        self.progress = progress

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """(log P of the continuation, is it what greedy decoding writes?)"""
        found: list[tuple[float, bool]] = []
        for block in self._blocks(requests):
            costs = self.reader.continued([request.args for request in block])
            found += [(-cost.nats, cost.greedy) for cost in costs]
        return found

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """log P of whole texts, in windows where the model's context is shorter."""
        found = []
        for block in self._blocks(requests):
            for request in block:
                windows = map(make_disjoint_window, self._windows(request.args[0]))
                rows = [(list(before), list(after)) for before, after in windows]
                whole = [[*before, *after] for before, after in rows]
                logs = foretold(self.reader.base, whole, [len(before) for before, _ in rows])
                found.append(math.fsum(log for row in logs for log, _ in row))
        return found

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Greedy answers up to the first stop; a task that wants to sample gets the likeliest tokens too."""
        found: list[str] = []
        for block in self._blocks(requests):
            settings = [request.args[1] for request in block]
            # Tasks that are run together come side by side, each with a length of its own.
            lengths = [int(one.get("max_gen_toks", _LONGEST_ANSWER)) for one in settings]
            answers = [""] * len(block)
            for most in sorted(set(lengths)):
                places = [at for at, length in enumerate(lengths) if length == most]
                wrote = self.reader.written([block[at].args[0] for at in places], most)
                for at, text in zip(places, wrote, strict=True):
                    answers[at] = _stopped(text, settings[at].get("until"))
            found += answers
        return found

    def _windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        base = self.reader.base
        ids = list(base.tokenizer.encode(text, add_special_tokens=False).ids)
        first = opening(base)
        if first is None:
            first, ids = ids[0], ids[1:]
        windows: Iterator[tuple[list[int], list[int]]] = get_rolling_token_windows(
            token_list=ids, prefix_token=first, max_seq_len=self.reader.context - 1, context_len=1
        )
        return windows

    def _blocks(self, requests: Sequence[Any]) -> Iterator[Sequence[Any]]:
        for start in range(0, len(requests), _BLOCK):
            yield requests[start : start + _BLOCK]
            self.progress.add(len(requests[start : start + _BLOCK]))


def _stopped(text: str, until: str | Sequence[str] | None) -> str:
    for stop in [until] if isinstance(until, str) else until or ():
        if stop:
            text = text.partition(stop)[0]
    return text


@dataclass
class Chosen:
    """Implements `workers.evaluation.tasks.Harness`."""

    spec: EvaluationSpec
    loaded: tuple[Any, ...]
    found: dict[str, TaskInfo] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: EvaluationSpec, tasks_dir: Path | None) -> Chosen:
        """The tasks with their documents. Raises RequestInvalid for a name that is not in the registry or a
        task that cannot be loaded, HubUnavailable when its documents cannot be had just now."""
        managers = [_manager_of(spec, at, tasks_dir) for at in range(len(spec.tasks))]
        found: list[Any] = []
        for manager, name in zip(managers, spec.tasks, strict=True):
            with _guarded(), _explained([name]):
                found += _loaded(manager, name)
        return cls(spec, tuple(found))

    @property
    def tasks(self) -> tuple[TaskInfo, ...]:
        """What was run."""
        return tuple(self.found.values())

    def run(self, base: TextModel, progress: Progress) -> Mapping[str, TaskScores]:
        """Every metric of every task that is a number. Raises RequestInvalid where a task cannot run."""
        with _guarded(), _explained(self.spec.tasks):
            results: Any = simple_evaluate(
                model=RunningModel(base, progress),
                tasks=list(self.loaded),
                num_fewshot=self.spec.num_fewshot,
                limit=self.spec.limit,
                bootstrap_iters=0,
                log_samples=True,
                task_manager=TaskManager(include_defaults=False),
                random_seed=self.spec.seed,
                numpy_random_seed=self.spec.seed,
                torch_random_seed=self.spec.seed,
                fewshot_random_seed=self.spec.seed,
                confirm_run_unsafe_code=False,
            )
        scores = [one for task in results["samples"] for one in self._scores(results, task)]
        return {one.name: one for one in scores}

    def _scores(self, results: Mapping[str, Any], task: str) -> Iterator[TaskScores]:
        samples = results["samples"][task]
        filters = sorted({sample["filter"] for sample in samples})
        documents = len({sample["doc_id"] for sample in samples})
        self.found[task] = TaskInfo(
            name=task,
            version=str(results["versions"].get(task, "")),
            documents=documents,
            num_fewshot=results["n-shot"].get(task),
        )
        for label, value in sorted(results["results"][task].items()):
            metric, comma, chosen = str(label).partition(",")
            if not comma or metric.endswith("_stderr") or not _is_number(value):
                continue
            rows = sorted(
                (sample for sample in samples if sample["filter"] == chosen), key=lambda row: row["doc_id"]
            )
            each = tuple(float(row[metric]) for row in rows if _is_number(row.get(metric)))
            if len(each) < len(rows) or abs(math.fsum(each) / max(len(each), 1) - value) > _NEAR:
                each = ()  # aggregated otherwise than by the mean: there is nothing to resample
            higher = results["higher_is_better"].get(task, {}).get(metric)
            yield TaskScores(
                task=task,
                metric=metric if len(filters) == 1 else f"{metric}, {chosen}",
                value=float(value),
                documents=documents,
                each=each,
                higher_is_better=higher is not False,
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _manager_of(spec: EvaluationSpec, at: int, tasks_dir: Path | None) -> TaskManager:
    """The registry that has the task; this worker's own comes first. Raises RequestInvalid."""
    name = spec.tasks[at]
    known: set[str] = set()
    registries: tuple[Callable[[], TaskManager | None], ...] = (partial(_own, tasks_dir), _registry)
    for registry in registries:
        manager = registry()
        if manager is None:
            continue
        if name in manager.all_tasks:
            return manager
        known |= set(manager.all_tasks)
    close = [one for one in sorted(known) if name.lower() in one.lower()][:_SHOWN]
    raise RequestInvalid(
        f"lm-evaluation-harness has no task '{name}'.",
        hint=f"Some that it has: {', '.join(close)}." if close else "`lm-eval ls tasks` lists them.",
        pointer=f"/evaluate/tasks/{at}",
    )


def _own(tasks_dir: Path | None) -> TaskManager | None:
    if tasks_dir is None:
        return None
    with _guarded():
        return TaskManager(include_path=str(tasks_dir), include_defaults=False)


@lru_cache(maxsize=1)
def _registry() -> TaskManager:
    """The harness's own tasks; reading thousands of small files takes seconds, once."""
    with _guarded():
        return TaskManager()


def _loaded(manager: TaskManager, name: str) -> list[Any]:
    """The group of this name, or the task, or the tasks with this tag."""
    found = manager.load([name])
    group = found["groups"].get(name)
    for task in found["tasks"].values():
        if getattr(task, "UNSAFE_CODE", False):
            raise ValueError(f"{name} runs code that a model writes")
        if None in getattr(task, "_metric_fn_list", {}).values():
            raise ValueError(f"{name} has a metric that the harness itself does not bring")
    return list(found["tasks"].values()) if group is None else [group]


@contextmanager
def _explained(names: Sequence[str]) -> Iterator[None]:
    """The harness raises whatever its tasks and the libraries below them raise: an IndexError, a template's
    error, an assertion. What ends the job itself is left as it is."""
    try:
        yield
    except (RebaseError, TransferError, SoftTimeLimitExceeded):
        raise
    except (ConnectionError, TimeoutError) as exc:
        raise HubUnavailable(
            f"The documents of {', '.join(names)} cannot be had just now.",
            hint="See that the worker reaches their datasets, or fill its cache beforehand.",
            pointer="/evaluate/tasks",
        ) from exc
    except Exception as exc:
        if is_out_of_memory(exc):
            raise
        # A task's own mistake is looked for in its traceback; a command line shows the sentence alone.
        log.info("lm-evaluation-harness could not run %s", ", ".join(names), exc_info=True)
        raise RequestInvalid(
            f"lm-evaluation-harness could not run {', '.join(names)}: {type(exc).__name__}.",
            hint="See that the worker can read their datasets, and that they run no code of a model.",
            pointer="/evaluate/tasks",
        ) from exc


@contextmanager
def _guarded() -> Iterator[None]:
    """Neither pages of log nor bars of progress, which are told elsewhere; and no metric by a script of the
    Hub, which `evaluate` would fetch and run."""
    logger = logging.getLogger("lm_eval")
    level, load, bar = logger.level, evaluate.load, task_module.tqdm
    bars = datasets.utils.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    evaluate.load, task_module.tqdm = _no_script, _no_bar
    datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        evaluate.load, task_module.tqdm = load, bar
        if bars:
            datasets.utils.enable_progress_bars()


def _no_script(*_args: Any, **_kwargs: Any) -> NoReturn:
    raise ValueError("the task's metric is a script of the Hub")


def _no_bar(items: Any, **_settings: Any) -> Any:
    return items
