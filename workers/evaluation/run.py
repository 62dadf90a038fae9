"""The evaluation of a moved adapter: every model on the same examples, then what that says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rebase.errors import WorseThanTarget
from rebase.lora.low_rank import LowRank, Side, Site
from rebase.methods.registry import get_method
from rebase.report.schema import NOT_EVALUATED, CorpusInfo, Evaluation, Metric, RepoRevision, Report, Subject
from rebase.schemas.evaluation import ChoiceExample, EvaluationSpec, GenerationExample
from transfer.adapter.read import SourceAdapter
from transfer.adapter.write import BuiltAdapter
from workers.evaluation.compare import averages, drifted, is_worse, judged, sentences, shown
from workers.evaluation.controls import padded, random_like
from workers.evaluation.prepare import Prepared, digest_of
from workers.evaluation.refusals import refusal_scores
from workers.evaluation.scoring import Deltas, applied, headline_of
from workers.evaluation.tasks import TaskScores
from workers.evaluation.written import written_adapter

_PROBED: tuple[Subject, ...] = ("target", "moved", "source_adapter")


def evaluated(prepared: Prepared, built: BuiltAdapter, report: Report) -> Report:
    """The report with what was measured of the adapter as it was written, and the caveats that follow."""
    adapter = written_adapter(built, prepared.opened.target)
    notes = []
    if adapter.tables:
        notes.append("The moved adapter's token rows were not applied: its figures are of the rest of it.")
    if prepared.opened.adapter.tables:
        notes.append("The source adapter's trained token rows were not applied on its own base.")
    if get_method(report.method_used["name"]).is_copy and "pad" in prepared.spec.controls:
        notes.append("The method copies the update itself, so the control 'pad' is no other adapter.")
    found = _evaluate(prepared, _deltas(adapter), notes)
    caveats = [line for line in report.caveats if line != NOT_EVALUATED]
    return report.model_copy(update={"evaluation": found, "caveats": [*caveats, *sentences(found)]})


def refuse_worse(spec: EvaluationSpec, report: Report) -> None:
    """Raises WorseThanTarget when the request asked not to publish what makes the target worse."""
    found = report.evaluation
    if found is None or spec.on_worse != "reject" or not is_worse(found):
        return
    difference = found.find_metric("moved", "difference")
    assert difference is not None
    raise WorseThanTarget(
        f"The moved adapter scores worse than the target alone: {shown(difference)} ({found.score}, "
        f"{difference.n} examples).",
        hint='Try another method, retrain on the new base, or set evaluate.on_worse to "warn".',
        pointer="/evaluate",
    )


def _evaluate(prepared: Prepared, moved: Deltas, notes: Sequence[str]) -> Evaluation:
    spec, scorer = prepared.spec, prepared.scorer
    models = dict(_models(prepared, moved))
    prompts = prepared.prompts.documents if prepared.prompts is not None else ()
    whole = len(models) * len(spec.examples) + len(_PROBED) * len(prompts)
    # The harness makes its requests as it goes, so their number is not known beforehand.
    prepared.progress.begin(whole if prepared.harness is None else None)
    figures: dict[Subject, tuple[dict[str, float], ...]] = {}
    tasks: dict[Subject, Mapping[str, TaskScores]] = {}
    refused: dict[Subject, tuple[float, ...]] = {}
    for subject, (side, deltas) in models.items():
        if spec.examples:
            figures[subject] = scorer.figures(side, deltas)
        if prompts and spec.refusals is not None and subject in _PROBED:
            refused[subject] = refusal_scores(
                prepared.bases, side, deltas, prompts, spec.refusals.tokens, prepared.progress
            )
        if prepared.harness is not None:
            base = prepared.bases.model(side)
            with applied(base, deltas):
                tasks[subject] = prepared.harness.run(base, prepared.progress)
    score, decisive = _decisive(prepared, figures, tasks)
    draws = {"times": spec.bootstrap, "seed": spec.seed}
    oracle = prepared.oracle
    return Evaluation(
        score=score,
        examples=_counts(spec),
        digest=digest_of([example.model_dump() for example in spec.examples]),
        prompts=_told(prepared),
        oracle=RepoRevision(repo_id=oracle.repo.repo_id, sha=oracle.repo.sha) if oracle is not None else None,
        tasks=list(prepared.harness.tasks) if prepared.harness is not None else [],
        settings=_settings(spec),
        figures=[
            *(judged(decisive, **draws) if decisive else ()),
            *_by_metric(figures, draws),
            *_of_tasks(tasks, draws),
            *(drifted(refused, **draws) if refused else ()),
        ],
        notes=[*prepared.notes, *notes, *scorer.notes],
    )


def _models(prepared: Prepared, moved: Deltas) -> Iterator[tuple[Subject, tuple[Side, Deltas]]]:
    """Whose scores are taken, those of one base together: only one may fit into memory."""
    spec, opened = prepared.spec, prepared.opened
    yield "target", ("target", {})
    yield "moved", ("target", moved)
    if "random" in spec.controls:
        yield "random", ("target", random_like(moved, spec.seed))
    if "pad" in spec.controls:
        yield "pad", ("target", padded(opened))
    if prepared.oracle is not None:
        yield "oracle", ("target", _deltas(prepared.oracle.adapter))
    yield "source", ("source", {})
    yield "source_adapter", ("source", _deltas(opened.adapter))


def _deltas(adapter: SourceAdapter) -> dict[Site, LowRank]:
    return {site: adapter.delta(site) for site in adapter.sites}


def _decisive(
    prepared: Prepared,
    figures: Mapping[Subject, Sequence[Mapping[str, float]]],
    tasks: Mapping[Subject, Mapping[str, TaskScores]],
) -> tuple[str | None, dict[Subject, tuple[float, ...]]]:
    """What decides: the examples' headline; without examples the first task's first metric that has a number
    per document. Nothing where neither is there."""
    if figures:
        return headline_of(prepared.spec), {
            subject: prepared.scorer.headline(rows) for subject, rows in figures.items()
        }
    for name, first in tasks.get("target", {}).items():
        if first.each and all(len(one[name].each) == len(first.each) for one in tasks.values()):
            sign = 1.0 if first.higher_is_better else -1.0
            scores = {
                subject: tuple(sign * value for value in one[name].each) for subject, one in tasks.items()
            }
            return name if sign > 0 else f"minus {name}", scores
    return None, {}


def _by_metric(
    figures: Mapping[Subject, Sequence[Mapping[str, float]]], draws: Mapping[str, int]
) -> Iterator[Metric]:
    metrics = sorted({metric for rows in figures.values() for row in rows for metric in row})
    for metric in metrics:
        scores = {
            subject: tuple(row[metric] for row in rows if metric in row) for subject, rows in figures.items()
        }
        yield from averages(metric, scores, **draws)


def _of_tasks(
    tasks: Mapping[Subject, Mapping[str, TaskScores]], draws: Mapping[str, int]
) -> Iterator[Metric]:
    """With intervals where there is a number per document."""
    for name, first in tasks.get("target", {}).items():
        rows = {subject: one[name] for subject, one in tasks.items() if name in one}
        if first.each and all(len(row.each) == len(first.each) for row in rows.values()):
            yield from averages(name, {subject: row.each for subject, row in rows.items()}, **draws)
            continue
        for subject, row in rows.items():
            yield Metric(subject=subject, metric=name, value=row.value, n=row.documents)


def _counts(spec: EvaluationSpec) -> dict[str, int]:
    names = [
        "generation"
        if isinstance(example, GenerationExample)
        else "choice"
        if isinstance(example, ChoiceExample)
        else "text"
        for example in spec.examples
    ]
    return {name: names.count(name) for name in ("generation", "choice", "text") if name in names}


def _settings(spec: EvaluationSpec) -> dict[str, Any]:
    wanted = {"controls", "choices_per_byte", "max_tokens", "stop", "bootstrap", "seed", "on_worse"}
    if spec.tasks:
        wanted |= {"limit", "num_fewshot"}
    told = spec.model_dump(mode="json", include=wanted)
    return {**told, "refusal_tokens": spec.refusals.tokens} if spec.refusals is not None else told


def _told(prepared: Prepared) -> CorpusInfo | None:
    prompts = prepared.prompts
    if prompts is None:
        return None
    return CorpusInfo(name=prompts.name, digest=prompts.digest, documents=len(prompts.documents))
