"""Runs EleutherAI's lm-evaluation-harness on already loaded models. Needs the extra `evaluation`.

Tasks come from the harness's own registry and from a folder set by the worker's operator; requests can only
name them. Dataset code is never run, nor are tasks that execute model output.
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
from rebase.evaluation.loglikelihood import TextScorer
from rebase.evaluation.scoring import ExampleProgress
from rebase.evaluation.tasks import TaskScores
from rebase.models.causal_lm import CausalLM
from rebase.models.generation import get_bos_id
from rebase.models.logprobs import compute_token_logprobs
from rebase.report.schema import TaskInfo
from rebase.runtime import is_out_of_memory
from rebase.schemas.evaluation import EvaluationSpec

log = logging.getLogger(__name__)

_BLOCK_SIZE = 32
_MAX_ANSWER_TOKENS = 256  # if a task sets no limit; the harness's own default
_MEAN_TOLERANCE = 1e-6
_MAX_SUGGESTIONS = 8


class LmEvalAdapter(LM):  # type: ignore[misc]
    """The harness's model interface over a loaded model in its current state, with its own tokenizer."""

    def __init__(self, base: CausalLM, progress: ExampleProgress) -> None:
        super().__init__()
        self.scorer = TextScorer(base, separator_as_bos=False)
        self.progress = progress

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """(log P of the continuation, whether greedy decoding would generate it)."""
        results: list[tuple[float, bool]] = []
        for block in self._iter_blocks(requests):
            likelihoods = self.scorer.loglikelihood([request.args for request in block])
            results += [(-likelihood.nats, likelihood.is_greedy) for likelihood in likelihoods]
        return results

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """log P of whole texts, in windows if they exceed the model's context."""
        totals = []
        for block in self._iter_blocks(requests):
            for request in block:
                windows = map(make_disjoint_window, self._split_windows(request.args[0]))
                rows = [(list(before), list(after)) for before, after in windows]
                sequences = [[*before, *after] for before, after in rows]
                logprobs = compute_token_logprobs(
                    self.scorer.base, sequences, [len(before) for before, _ in rows]
                )
                totals.append(math.fsum(log for row in logprobs for log, _ in row))
        return totals

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Greedy answers up to the first stop string, even for tasks that ask for sampling."""
        results: list[str] = []
        for block in self._iter_blocks(requests):
            settings = [request.args[1] for request in block]
            # Requests of several tasks may be mixed, each with its own length.
            lengths = [int(one.get("max_gen_toks", _MAX_ANSWER_TOKENS)) for one in settings]
            answers = [""] * len(block)
            for max_new_tokens in sorted(set(lengths)):
                indices = [at for at, length in enumerate(lengths) if length == max_new_tokens]
                generated = self.scorer.generate_until([block[at].args[0] for at in indices], max_new_tokens)
                for at, text in zip(indices, generated, strict=True):
                    answers[at] = _truncate_at_stop(text, settings[at].get("until"))
            results += answers
        return results

    def _split_windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        base = self.scorer.base
        ids = list(base.tokenizer.encode(text, add_special_tokens=False).ids)
        prefix_id = get_bos_id(base)
        if prefix_id is None:
            prefix_id, ids = ids[0], ids[1:]
        windows: Iterator[tuple[list[int], list[int]]] = get_rolling_token_windows(
            token_list=ids, prefix_token=prefix_id, max_seq_len=self.scorer.max_positions - 1, context_len=1
        )
        return windows

    def _iter_blocks(self, requests: Sequence[Any]) -> Iterator[Sequence[Any]]:
        for start in range(0, len(requests), _BLOCK_SIZE):
            yield requests[start : start + _BLOCK_SIZE]
            self.progress.add(len(requests[start : start + _BLOCK_SIZE]))


def _truncate_at_stop(text: str, until: str | Sequence[str] | None) -> str:
    for stop in [until] if isinstance(until, str) else until or ():
        if stop:
            text = text.partition(stop)[0]
    return text


@dataclass
class SelectedTasks:
    """Implements `rebase.evaluation.tasks.Harness`."""

    spec: EvaluationSpec
    lm_eval_tasks: tuple[Any, ...]
    task_infos: dict[str, TaskInfo] = field(default_factory=dict)

    @classmethod
    def load(cls, spec: EvaluationSpec, tasks_dir: Path | None) -> SelectedTasks:
        """Load the tasks and their documents. Raises RequestInvalid for an unknown name or a task that cannot
        be loaded, HubUnavailable if its documents are temporarily unavailable."""
        managers = [_find_task_manager(spec, at, tasks_dir) for at in range(len(spec.tasks))]
        lm_eval_tasks: list[Any] = []
        for manager, name in zip(managers, spec.tasks, strict=True):
            with _restrict_lm_eval(), _translate_errors([name]):
                lm_eval_tasks += _load_task(manager, name)
        return cls(spec, tuple(lm_eval_tasks))

    @property
    def tasks(self) -> tuple[TaskInfo, ...]:
        """The tasks that were run."""
        return tuple(self.task_infos.values())

    def run(self, base: CausalLM, progress: ExampleProgress) -> Mapping[str, TaskScores]:
        """Every numeric metric of every task. Raises RequestInvalid if a task cannot run."""
        with _restrict_lm_eval(), _translate_errors(self.spec.tasks):
            results: Any = simple_evaluate(
                model=LmEvalAdapter(base, progress),
                tasks=list(self.lm_eval_tasks),
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
        scores = [one for task in results["samples"] for one in self._iter_scores(results, task)]
        return {one.name: one for one in scores}

    def _iter_scores(self, results: Mapping[str, Any], task: str) -> Iterator[TaskScores]:
        samples = results["samples"][task]
        filters = sorted({sample["filter"] for sample in samples})
        documents = len({sample["doc_id"] for sample in samples})
        self.task_infos[task] = TaskInfo(
            name=task,
            version=str(results["versions"].get(task, "")),
            documents=documents,
            num_fewshot=results["n-shot"].get(task),
        )
        for label, value in sorted(results["results"][task].items()):
            metric, comma, filter_name = str(label).partition(",")
            if not comma or metric.endswith("_stderr") or not _is_number(value):
                continue
            rows = sorted(
                (sample for sample in samples if sample["filter"] == filter_name),
                key=lambda row: row["doc_id"],
            )
            per_document = tuple(float(row[metric]) for row in rows if _is_number(row.get(metric)))
            if (
                len(per_document) < len(rows)
                or abs(math.fsum(per_document) / max(len(per_document), 1) - value) > _MEAN_TOLERANCE
            ):
                per_document = ()  # not aggregated by the mean, so it cannot be resampled
            is_higher_better = results["higher_is_better"].get(task, {}).get(metric)
            yield TaskScores(
                task=task,
                metric=metric if len(filters) == 1 else f"{metric}, {filter_name}",
                value=float(value),
                documents=documents,
                per_document=per_document,
                higher_is_better=is_higher_better is not False,
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _find_task_manager(spec: EvaluationSpec, task_index: int, tasks_dir: Path | None) -> TaskManager:
    """The registry that has the task; this worker's own takes precedence. Raises RequestInvalid."""
    name = spec.tasks[task_index]
    known_names: set[str] = set()
    registries: tuple[Callable[[], TaskManager | None], ...] = (
        partial(_load_local_registry, tasks_dir),
        _load_builtin_registry,
    )
    for registry in registries:
        manager = registry()
        if manager is None:
            continue
        if name in manager.all_tasks:
            return manager
        known_names |= set(manager.all_tasks)
    suggestions = [one for one in sorted(known_names) if name.lower() in one.lower()][:_MAX_SUGGESTIONS]
    raise RequestInvalid(
        f"lm-evaluation-harness has no task '{name}'.",
        hint=f"Similar tasks: {', '.join(suggestions)}." if suggestions else "`lm-eval ls tasks` lists them.",
        pointer=f"/evaluate/tasks/{task_index}",
    )


def _load_local_registry(tasks_dir: Path | None) -> TaskManager | None:
    if tasks_dir is None:
        return None
    with _restrict_lm_eval():
        return TaskManager(include_path=str(tasks_dir), include_defaults=False)


@lru_cache(maxsize=1)
def _load_builtin_registry() -> TaskManager:
    """The harness's own tasks, cached: reading thousands of small files takes seconds."""
    with _restrict_lm_eval():
        return TaskManager()


def _load_task(manager: TaskManager, name: str) -> list[Any]:
    """The group or task with this name, or all tasks with this tag."""
    loaded = manager.load([name])
    group = loaded["groups"].get(name)
    for task in loaded["tasks"].values():
        if getattr(task, "UNSAFE_CODE", False):
            raise ValueError(f"{name} runs code that a model generates")
        if None in getattr(task, "_metric_fn_list", {}).values():
            raise ValueError(f"{name} has a metric that is not part of the harness")
    return list(loaded["tasks"].values()) if group is None else [group]


@contextmanager
def _translate_errors(names: Sequence[str]) -> Iterator[None]:
    """Turn the arbitrary exceptions of tasks and their libraries into typed errors. Errors that end the job
    pass through."""
    try:
        yield
    except (RebaseError, TransferError, SoftTimeLimitExceeded):
        raise
    except (ConnectionError, TimeoutError) as exc:
        raise HubUnavailable(
            f"The documents of {', '.join(names)} are currently unavailable.",
            hint="Check that the worker can reach their datasets, or fill its cache beforehand.",
            pointer="/evaluate/tasks",
        ) from exc
    except Exception as exc:
        if is_out_of_memory(exc):
            raise
        # The traceback helps to find mistakes in a task; the command line shows only the message.
        log.info("lm-evaluation-harness could not run %s", ", ".join(names), exc_info=True)
        raise RequestInvalid(
            f"lm-evaluation-harness could not run {', '.join(names)}: {type(exc).__name__}.",
            hint=(
                "Check that the worker can read their datasets, and that the tasks do not run "
                "model-generated code."
            ),
            pointer="/evaluate/tasks",
        ) from exc


@contextmanager
def _restrict_lm_eval() -> Iterator[None]:
    """Silence the harness's logs and progress bars, and block metrics that `evaluate` would download from the
    Hub as scripts and run."""
    logger = logging.getLogger("lm_eval")
    level, load, bar = logger.level, evaluate.load, task_module.tqdm
    bars = datasets.utils.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    evaluate.load, task_module.tqdm = _reject_script, _pass_through
    datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        evaluate.load, task_module.tqdm = load, bar
        if bars:
            datasets.utils.enable_progress_bars()


def _reject_script(*_args: Any, **_kwargs: Any) -> NoReturn:
    raise ValueError("the task's metric is a script from the Hub")


def _pass_through(items: Any, **_settings: Any) -> Any:
    return items
