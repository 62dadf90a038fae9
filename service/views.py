"""What the API shows of a job. Built from the record without validating again what the database holds."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from rebase.errors import PublicError
from rebase.schemas.states import JobState
from rebase.store.records import Diagnostics, JobPage, JobRecord, Kind


class ProgressView(BaseModel):
    """Work done within the current phase; `eta_s` in seconds."""

    done: int
    total: int | None
    unit: str | None
    eta_s: float | None


class ResolvedView(BaseModel):
    """The commits (40 hex digits) that the job works on, and where its output goes."""

    adapter_sha: str
    source_repo: str
    source_sha: str
    target_sha: str
    output_repo: str | None


class JobView(BaseModel):
    """A job; of kind `pool`, one that registers an anchor pool. When `done`, exactly one of `result` and
    `error` is not null."""

    id: str
    kind: Kind
    status: JobState
    done: bool
    phase: str | None
    progress: ProgressView | None
    attempt: int
    attempt_limit: int
    cancel_requested: bool
    next_attempt_at: datetime | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    resolved: ResolvedView | None
    verdict: str | None
    result: dict[str, Any] | None
    error: PublicError | None
    request: dict[str, Any]
    links: dict[str, str]

    @classmethod
    def of(cls, job: JobRecord) -> JobView:
        """The view of a record."""
        return cls.model_construct(
            id=job.id,
            kind=job.kind,
            status=job.state,
            done=job.is_done,
            phase=job.phase,
            progress=progress_of(job),
            attempt=job.attempt,
            attempt_limit=job.attempt_limit,
            cancel_requested=job.cancel_requested,
            next_attempt_at=job.not_before,
            created_at=job.created_at,
            updated_at=job.updated_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            resolved=_resolved_of(job),
            verdict=job.verdict,
            result=job.result if job.state is JobState.SUCCEEDED else None,
            error=PublicError.model_construct(**job.error) if job.is_done and job.error else None,
            request=job.request,
            links=_links_of(job),
        )


class JobListView(BaseModel):
    """One page, newest first. Pass `next_cursor` as `cursor` for the next one; null on the last."""

    jobs: list[JobView]
    next_cursor: str | None

    @classmethod
    def of(cls, page: JobPage) -> JobListView:
        """The view of a page."""
        return cls.model_construct(jobs=[JobView.of(job) for job in page.jobs], next_cursor=page.next_cursor)


class LayerMapView(BaseModel):
    """How alike the layers of the two bases are on the same text. `similarity[source layer][target layer]`:
    debiased CKA; `layers`: target layer → source layer; `coverage`: share of the target layers whose best
    source layer is above `threshold`."""

    similarity: list[list[float]]
    layers: list[int]
    coverage: float | None = None
    threshold: float | None = None
    positions: int | None = None
    coverage_source: float | None = None
    coverage_target: float | None = None
    biased: list[float] | None = None
    corpus: dict[str, Any] | None = None


class FigureView(BaseModel):
    """One figure of one model, with its 95 % interval over `n` examples. Without a value, `reason` says why.

    `subject`: moved, target (alone), random, pad (controls), source_adapter, source, oracle.
    """

    subject: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str | None


class EvaluationView(BaseModel):
    """What running models made of the request's examples, tasks and prompts; `score`: what decides."""

    score: str | None = None
    examples: dict[str, int] = {}
    digest: str | None = None
    prompts: dict[str, Any] | None = None
    oracle: dict[str, Any] | None = None
    tasks: list[dict[str, Any]] = []
    settings: dict[str, Any] = {}
    figures: list[FigureView]
    notes: list[str] = []


class DiagnosticsView(BaseModel):
    """What the latest run measured: the job's summary, one object per target site, the similarity of layers
    where both bases read a text, and the evaluation where one was asked for."""

    job_id: str
    verdict: str | None
    summary: dict[str, Any] | None
    sites: list[dict[str, Any]]
    layer_map: LayerMapView | None
    evaluation: EvaluationView | None

    @classmethod
    def of(cls, job_id: str, diagnostics: Diagnostics) -> DiagnosticsView:
        """The view of a job's diagnostics."""
        return cls.model_construct(
            job_id=job_id,
            verdict=diagnostics.verdict,
            summary=diagnostics.summary,
            sites=list(diagnostics.sites),
            layer_map=_layer_map_of(diagnostics),
            evaluation=_evaluation_of(diagnostics),
        )


class MethodView(BaseModel):
    """One transfer method; `parameters` is a JSON schema."""

    name: str
    summary: str
    parameters: dict[str, Any]


class MethodListView(BaseModel):
    """The catalogue."""

    methods: list[MethodView]


def progress_of(job: JobRecord) -> ProgressView | None:
    """A running job's progress; None while there is none to show."""
    if job.progress_done is None:
        return None
    return ProgressView.model_construct(
        done=job.progress_done, total=job.progress_total, unit=job.progress_unit, eta_s=job.progress_eta_s
    )


def _layer_map_of(diagnostics: Diagnostics) -> LayerMapView | None:
    if not diagnostics.layer_similarity.similarity:
        return None
    told = (diagnostics.summary or {}).get("layer_map") or {}
    return LayerMapView.model_construct(
        **{
            **told,
            "similarity": diagnostics.layer_similarity.similarity,
            "layers": diagnostics.layer_similarity.layer_map,
        }
    )


def _evaluation_of(diagnostics: Diagnostics) -> EvaluationView | None:
    told = (diagnostics.summary or {}).get("evaluation")
    if told is None:
        return None
    figures = [FigureView.model_construct(**asdict(figure)) for figure in diagnostics.metrics]
    return EvaluationView.model_construct(**{**told, "figures": figures})


def _links_of(job: JobRecord) -> dict[str, str]:
    here = f"/jobs/{job.id}"
    links = {"self": here, "diagnostics": f"{here}/diagnostics", "events": f"{here}/events"}
    if job.request.get("callback") is not None:
        links["deliveries"] = f"{here}/deliveries"
    return {**links, "pool": f"/anchor-pools/{job.id}"} if job.kind == "pool" else links


def _resolved_of(job: JobRecord) -> ResolvedView | None:
    if job.adapter_sha is None or job.source_repo is None or job.source_sha is None or job.target_sha is None:
        return None
    return ResolvedView.model_construct(
        adapter_sha=job.adapter_sha,
        source_repo=job.source_repo,
        source_sha=job.source_sha,
        target_sha=job.target_sha,
        output_repo=job.output_repo,
    )
