"""Loads and checks what an evaluation needs before the conversion starts, so that mistakes fail fast."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rebase.corpus.corpus import Corpus
from rebase.corpus.load import read_dataset
from rebase.errors import NotAvailable, RebaseError, RequestInvalid, TransferError
from rebase.evaluation.scoring import ExampleProgress, ExampleScorer, Measure, get_primary_metric
from rebase.evaluation.tasks import Harness
from rebase.evidence.inputs import LoadedInputs
from rebase.hub.base import Hub, PinnedRepo, pin
from rebase.hub.folder_names import describe_base, describe_repo, is_named
from rebase.lora.config import AdapterConfig
from rebase.lora.reader import read_adapter
from rebase.lora.source_adapter import SourceAdapter
from rebase.models.adapter_reader import open_adapter
from rebase.models.base_pair import BasePair
from rebase.report.progress import ProgressReporter
from rebase.runtime import Runtime
from rebase.schemas.evaluation import EvaluationSpec, RefusalSpec


@dataclass(frozen=True, slots=True)
class Oracle:
    """An adapter that was trained on the target."""

    repo: PinnedRepo
    adapter: SourceAdapter


@dataclass
class PreparedEvaluation:
    """An evaluation ready to run. `prompts`: for the refusal probe; `notes`: limitations to report."""

    spec: EvaluationSpec
    inputs: LoadedInputs
    models: BasePair
    scorer: ExampleScorer
    progress: ExampleProgress
    oracle: Oracle | None = None
    prompts: Corpus | None = None
    harness: Harness | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def measure(self) -> Measure | None:
        """Scores the target with given deltas on the request's examples; None if there are none."""
        return self.scorer.measure if get_primary_metric(self.spec) is not None else None


def prepare_evaluation(
    spec: EvaluationSpec | None,
    inputs: LoadedInputs,
    models: BasePair,
    runtime: Runtime,
    reporter: ProgressReporter,
) -> PreparedEvaluation | None:
    """The prepared evaluation, or None if `spec` is None. No model is loaded yet.

    Raises NotAvailable, RequestInvalid and errors of the hub, of adapters and of datasets, each with a
    pointer into `evaluate`; RequestInvalid for a base without a tokenizer.
    """
    if spec is None:
        return None
    models.get_tokenizer("target")
    models.get_tokenizer("source")
    notes: list[str] = []
    task_harness = load_harness(spec, runtime.tasks_dir) if spec.tasks else None
    oracle = _load_oracle(spec, inputs, runtime.hub, notes)
    prompts = _load_prompts(spec.refusals, runtime.hub) if spec.refusals is not None else None
    progress = ExampleProgress(reporter)
    return PreparedEvaluation(
        spec=spec,
        inputs=inputs,
        models=models,
        scorer=ExampleScorer(models, spec, progress),
        progress=progress,
        oracle=oracle,
        prompts=prompts,
        harness=task_harness,
        notes=notes,
    )


def _load_oracle(spec: EvaluationSpec, inputs: LoadedInputs, hub: Hub, notes: list[str]) -> Oracle | None:
    if spec.oracle is None:
        return None
    with _errors_at("/evaluate/oracle"):
        repo = pin(hub, spec.oracle, "/evaluate/oracle")
        raw_config, reader = open_adapter(hub, repo)
        declared, pinned = raw_config.get("base_model_name_or_path"), inputs.pinned
        base = (
            declared
            if isinstance(declared, str) and declared and not is_named(pinned.target, declared)
            else None
        )
        if base is not None and is_named(pinned.source, base):
            raise RequestInvalid(
                f"The oracle {repo} was trained on the source, {pinned.source.public.repo_id}.",
                hint=f"Use an adapter that was trained on {pinned.target.public.repo_id}, or leave it out.",
                pointer="/evaluate/oracle",
            )
        adapter = read_adapter(AdapterConfig.parse(raw_config), reader, inputs.target)
    if base is not None:
        notes.append(
            f"The oracle names {describe_base(base)} as its base; it was evaluated on "
            f"{describe_repo(pinned.target, 'target')}."
        )
    if adapter.contents.has_extra_parts:
        notes.append("The oracle's trained token rows were not applied.")
    return Oracle(repo, adapter)


def _load_prompts(spec: RefusalSpec, hub: Hub) -> Corpus:
    if spec.dataset is None:
        return Corpus(spec.prompts, compute_digest(spec.prompts), "the request", None)
    with _errors_at("/evaluate/refusals/dataset"):
        return read_dataset(spec.dataset, hub)


def compute_digest(parts: Any) -> str:
    """SHA-256 of a JSON value, in hex."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@contextmanager
def _errors_at(pointer: str) -> Iterator[None]:
    """Point errors at this field; errors about a corpus point at the same subfield."""
    try:
        yield
    except (RebaseError, TransferError) as exc:
        inner = exc.pointer or ""
        if inner.startswith("/corpus"):
            exc.pointer = pointer + inner.removeprefix("/corpus")
        elif not inner.startswith(pointer):
            exc.pointer = pointer
        if exc.hint:
            exc.hint = exc.hint.replace(": corpus.column", ": evaluate.refusals.dataset.column")
        raise


def load_harness(spec: EvaluationSpec, tasks_dir: Path | None) -> Harness:
    """Raises NotAvailable if lm-evaluation-harness is not installed, RequestInvalid for an unknown task."""
    try:
        from rebase.evaluation.lm_eval import SelectedTasks
    except ImportError as exc:
        raise NotAvailable(
            "Named tasks need lm-evaluation-harness, which this worker does not have.",
            hint=(
                "Install the extra on the worker (pip install 'rebase-lora[worker,evaluation]'), or "
                "provide examples."
            ),
            pointer="/evaluate/tasks",
        ) from exc
    return SelectedTasks.load(spec, tasks_dir)
