"""Evaluation of a transferred adapter and its controls on the same examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rebase.errors import WorseThanTarget
from rebase.evaluation.compare import (
    build_evaluation_caveats,
    compute_averages,
    compute_comparison_metrics,
    compute_refusal_drift,
    format_metric,
    is_worse,
)
from rebase.evaluation.prepare import PreparedEvaluation, compute_digest
from rebase.evaluation.refusals import score_refusals
from rebase.evaluation.scoring import Deltas, apply_deltas, get_primary_metric
from rebase.evaluation.tasks import TaskScores
from rebase.evidence.inputs import LoadedInputs
from rebase.lora.config import AdapterConfig
from rebase.lora.fold_layers import fold_layers
from rebase.lora.linalg import frobenius
from rebase.lora.low_rank import LowRank, Side, Site
from rebase.lora.reader import read_adapter
from rebase.lora.source_adapter import SourceAdapter
from rebase.lora.tensors import TensorInfo
from rebase.lora.writer import BuiltAdapter
from rebase.methods.copy.method import Copy
from rebase.methods.copy.params import CopyParams
from rebase.methods.registry import get_method
from rebase.methods.site_pairing import pair_sites
from rebase.models.safetensors_header import TORCH_DTYPES
from rebase.models.weights import ModelWeights
from rebase.report.schema import NOT_EVALUATED, CorpusInfo, Evaluation, Metric, RepoRevision, Report, Subject
from rebase.schemas.evaluation import ChoiceExample, EvaluationSpec, GenerationExample

_DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True, slots=True)
class _InMemoryTensors:
    """A `rebase.lora.tensors.TensorReader` over tensors in memory."""

    tensors: Mapping[str, Tensor]

    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor's dtype and shape."""
        return {
            name: TensorInfo(_DTYPE_NAMES[tensor.dtype], tuple(tensor.shape))
            for name, tensor in self.tensors.items()
        }

    def read(self, name: str) -> Tensor:
        """One tensor."""
        return self.tensors[name]

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop)."""
        return self.tensors[name][start:stop]


def read_back_adapter(built: BuiltAdapter, target: ModelWeights) -> SourceAdapter:
    """The adapter as users will load it."""
    return read_adapter(AdapterConfig.parse(built.config), _InMemoryTensors(built.tensors), target)


def make_random_control(deltas: Deltas, seed: int) -> dict[Site, LowRank]:
    """Gaussian factors with each site's norm ‖BA‖_F and rank. Drawn on the CPU in site order, so that the
    same seed gives the same control."""
    generator = torch.Generator().manual_seed(seed)
    control = {}
    for site, delta in sorted(deltas.items()):
        (o, i), rank = delta.shape, delta.rank
        random_factors = LowRank(
            torch.randn(o, rank, generator=generator), torch.randn(rank, i, generator=generator)
        )
        norm = frobenius(random_factors)
        control[site] = random_factors.scaled(frobenius(delta) / norm if norm > 0.0 else 0.0)
    return control


def make_padded_control(inputs: LoadedInputs) -> dict[Site, LowRank]:
    """The source's update copied entry by entry to the layer at the same relative depth, cropped or
    zero-padded to shape. For equal shapes this is the method `copy`."""
    pairs = pair_sites(inputs.source, inputs.target, inputs.adapter.sites, layer_scale=False).pairs
    parts: dict[Site, list[LowRank]] = {}
    copy, params = Copy(), CopyParams(pad=True)
    for pair in pairs:
        delta = inputs.adapter.delta(pair.source)
        # `copy` reads no evidence.
        result = copy.transfer_site(params, None, pair, delta, None)  # type: ignore[arg-type]
        parts.setdefault(pair.target, []).append(result.delta)
    return fold_layers(parts)[0]


_REFUSAL_SUBJECTS: tuple[Subject, ...] = ("target", "moved", "source_adapter")


def evaluate_adapter(prepared: PreparedEvaluation, built: BuiltAdapter, report: Report) -> Report:
    """The report with the evaluation of the adapter as written, and the resulting caveats."""
    adapter = read_back_adapter(built, prepared.inputs.target)
    notes = []
    if adapter.contents.has_extra_parts:
        notes.append(
            "What the transferred adapter has besides LoRA on its layers (token rows, norms, …) was not "
            "applied: the scores are for the rest of it."
        )
    if prepared.inputs.adapter.contents.has_extra_parts:
        notes.append(
            "What the source adapter trained besides LoRA on its layers was not applied on its own base."
        )
    if get_method(report.method_used["name"]).is_copy and "pad" in prepared.spec.controls:
        notes.append("The method itself copies the update, so the control 'pad' would be the same adapter.")
    evaluation = _run_evaluation(prepared, _load_deltas(adapter), notes)
    caveats = [line for line in report.caveats if line != NOT_EVALUATED]
    return report.model_copy(
        update={"evaluation": evaluation, "caveats": [*caveats, *build_evaluation_caveats(evaluation)]}
    )


def reject_worse(spec: EvaluationSpec, report: Report) -> None:
    """Raises WorseThanTarget if the adapter makes the target worse and the request rejects that."""
    evaluation = report.evaluation
    if evaluation is None or spec.on_worse != "reject" or not is_worse(evaluation):
        return
    difference = evaluation.find_metric("moved", "difference")
    assert difference is not None
    raise WorseThanTarget(
        f"The transferred adapter scores worse than the target alone: {format_metric(difference)} "
        f"({evaluation.score}, {difference.n} examples).",
        hint='Try another method, retrain on the new base, or set evaluate.on_worse to "warn".',
        pointer="/evaluate",
    )


def _run_evaluation(prepared: PreparedEvaluation, transferred: Deltas, notes: Sequence[str]) -> Evaluation:
    spec, scorer = prepared.spec, prepared.scorer
    subjects = dict(_iter_subjects(prepared, transferred))
    prompts = prepared.prompts.documents if prepared.prompts is not None else ()
    total = len(subjects) * len(spec.examples) + len(_REFUSAL_SUBJECTS) * len(prompts)
    # The harness creates requests as it runs, so their number is not known in advance.
    prepared.progress.start(total if prepared.harness is None else None)
    example_metrics: dict[Subject, tuple[dict[str, float], ...]] = {}
    task_scores: dict[Subject, Mapping[str, TaskScores]] = {}
    refusals: dict[Subject, tuple[float, ...]] = {}
    for subject, (side, deltas) in subjects.items():
        if spec.examples:
            example_metrics[subject] = scorer.score_examples(side, deltas)
        if prompts and spec.refusals is not None and subject in _REFUSAL_SUBJECTS:
            refusals[subject] = score_refusals(
                prepared.models, side, deltas, prompts, spec.refusals.tokens, prepared.progress
            )
        if prepared.harness is not None:
            base = prepared.models.get_model(side)
            with apply_deltas(base, deltas):
                task_scores[subject] = prepared.harness.run(base, prepared.progress)
    score, decisive_scores = _select_decisive_scores(prepared, example_metrics, task_scores)
    bootstrap_options = {"times": spec.bootstrap, "seed": spec.seed}
    oracle = prepared.oracle
    return Evaluation(
        score=score,
        examples=_count_examples(spec),
        digest=compute_digest([example.model_dump() for example in spec.examples]),
        prompts=_summarize_prompts(prepared),
        oracle=RepoRevision.from_pinned(oracle.repo) if oracle is not None else None,
        tasks=list(prepared.harness.tasks) if prepared.harness is not None else [],
        settings=_describe_settings(spec),
        figures=[
            *(compute_comparison_metrics(decisive_scores, **bootstrap_options) if decisive_scores else ()),
            *_average_metrics(example_metrics, bootstrap_options),
            *_average_tasks(task_scores, bootstrap_options),
            *(compute_refusal_drift(refusals, **bootstrap_options) if refusals else ()),
        ],
        notes=[*prepared.notes, *notes, *scorer.notes],
    )


def _iter_subjects(
    prepared: PreparedEvaluation, transferred: Deltas
) -> Iterator[tuple[Subject, tuple[Side, Deltas]]]:
    """The models to score, grouped by base: only one base may fit into memory."""
    spec, opened = prepared.spec, prepared.inputs
    yield "target", ("target", {})
    yield "moved", ("target", transferred)
    if "random" in spec.controls:
        yield "random", ("target", make_random_control(transferred, spec.seed))
    if "pad" in spec.controls:
        yield "pad", ("target", make_padded_control(opened))
    if prepared.oracle is not None:
        yield "oracle", ("target", _load_deltas(prepared.oracle.adapter))
    yield "source", ("source", {})
    yield "source_adapter", ("source", _load_deltas(opened.adapter))


def _load_deltas(adapter: SourceAdapter) -> dict[Site, LowRank]:
    return {site: adapter.delta(site) for site in adapter.sites}


def _select_decisive_scores(
    prepared: PreparedEvaluation,
    example_metrics: Mapping[Subject, Sequence[Mapping[str, float]]],
    task_scores: Mapping[Subject, Mapping[str, TaskScores]],
) -> tuple[str | None, dict[Subject, tuple[float, ...]]]:
    """The primary scores: those of the examples, else the first task metric with a value per document; none
    if there is neither."""
    if example_metrics:
        return get_primary_metric(prepared.spec), {
            subject: prepared.scorer.get_primary_scores(rows) for subject, rows in example_metrics.items()
        }
    for name, first in task_scores.get("target", {}).items():
        if first.per_document and all(
            len(one[name].per_document) == len(first.per_document) for one in task_scores.values()
        ):
            sign = 1.0 if first.higher_is_better else -1.0
            scores = {
                subject: tuple(sign * value for value in one[name].per_document)
                for subject, one in task_scores.items()
            }
            return name if sign > 0 else f"minus {name}", scores
    return None, {}


def _average_metrics(
    example_metrics: Mapping[Subject, Sequence[Mapping[str, float]]], bootstrap_options: Mapping[str, int]
) -> Iterator[Metric]:
    metrics = sorted({metric for rows in example_metrics.values() for row in rows for metric in row})
    for metric in metrics:
        scores = {
            subject: tuple(row[metric] for row in rows if metric in row)
            for subject, rows in example_metrics.items()
        }
        yield from compute_averages(metric, scores, **bootstrap_options)


def _average_tasks(
    task_scores: Mapping[Subject, Mapping[str, TaskScores]], bootstrap_options: Mapping[str, int]
) -> Iterator[Metric]:
    """Task metrics, with intervals where there is a value per document."""
    for name, first in task_scores.get("target", {}).items():
        rows = {subject: one[name] for subject, one in task_scores.items() if name in one}
        if first.per_document and all(
            len(row.per_document) == len(first.per_document) for row in rows.values()
        ):
            yield from compute_averages(
                name, {subject: row.per_document for subject, row in rows.items()}, **bootstrap_options
            )
            continue
        for subject, row in rows.items():
            yield Metric(subject=subject, metric=name, value=row.value, n=row.documents)


def _count_examples(spec: EvaluationSpec) -> dict[str, int]:
    names = [
        "generation"
        if isinstance(example, GenerationExample)
        else "choice"
        if isinstance(example, ChoiceExample)
        else "text"
        for example in spec.examples
    ]
    return {name: names.count(name) for name in ("generation", "choice", "text") if name in names}


def _describe_settings(spec: EvaluationSpec) -> dict[str, Any]:
    fields = {"controls", "choices_per_byte", "max_tokens", "stop", "bootstrap", "seed", "on_worse"}
    if spec.tasks:
        fields |= {"limit", "num_fewshot"}
    settings = spec.model_dump(mode="json", include=fields)
    return {**settings, "refusal_tokens": spec.refusals.tokens} if spec.refusals is not None else settings


def _summarize_prompts(prepared: PreparedEvaluation) -> CorpusInfo | None:
    prompts = prepared.prompts
    if prompts is None:
        return None
    return CorpusInfo(name=prompts.name, digest=prompts.digest, documents=len(prompts.documents))
