"""Responses about jobs, built from records without validating stored data again."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from rebase.errors import PublicError
from rebase.schemas.states import JobState, Kind

if TYPE_CHECKING:
    from rebase.store.records import Diagnostics, JobPage, JobRecord


class ProgressOut(BaseModel):
    """Progress within the current phase; `eta_s` in seconds."""

    done: int
    total: int | None
    unit: str | None
    eta_s: float | None


class ResolvedOut(BaseModel):
    """The pinned commits (40 hex digits) that the job uses, and its output repo."""

    adapter_sha: str
    source_repo: str
    source_sha: str
    target_sha: str
    output_repo: str | None


class JobOut(BaseModel):
    """A job; one of kind `pool` registers an anchor pool. When `done`, exactly one of `result` and `error` is
    not null."""

    id: str
    kind: Kind
    status: JobState
    done: bool
    phase: str | None
    progress: ProgressOut | None
    attempt: int
    attempt_limit: int
    cancel_requested: bool
    next_attempt_at: datetime | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    resolved: ResolvedOut | None
    verdict: str | None
    result: dict[str, Any] | None
    error: PublicError | None
    request: dict[str, Any]
    links: dict[str, str]

    @classmethod
    def from_record(cls, job: JobRecord) -> JobOut:
        """Build from a record."""
        return cls.model_construct(
            id=job.id,
            kind=job.kind,
            status=job.state,
            done=job.is_done,
            phase=job.phase,
            progress=build_progress(job),
            attempt=job.attempt,
            attempt_limit=job.attempt_limit,
            cancel_requested=job.cancel_requested,
            next_attempt_at=job.not_before,
            created_at=job.created_at,
            updated_at=job.updated_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            resolved=_build_resolved(job),
            verdict=job.verdict,
            result=job.result if job.state is JobState.SUCCEEDED else None,
            error=PublicError.model_construct(**job.error) if job.is_done and job.error else None,
            request=job.request,
            links=_build_links(job),
        )


class JobListOut(BaseModel):
    """One page, newest first. Pass `next_cursor` as `cursor` for the next page; null on the last one."""

    jobs: list[JobOut]
    next_cursor: str | None

    @classmethod
    def from_page(cls, page: JobPage) -> JobListOut:
        """Build from a page of records."""
        return cls.model_construct(
            jobs=[JobOut.from_record(job) for job in page.jobs], next_cursor=page.next_cursor
        )


class LayerMapOut(BaseModel):
    """Similarity of the two bases' layers on the same text. `similarity[source layer][target layer]`:
    debiased CKA; `layers`: target layer → source layer; `coverage`: share of target layers whose best source
    layer is above `threshold`."""

    similarity: list[list[float]]
    layers: list[int]
    coverage: float | None = None
    threshold: float | None = None
    positions: int | None = None
    coverage_source: float | None = None
    coverage_target: float | None = None
    biased: list[float] | None = None
    corpus: dict[str, Any] | None = None


class MetricOut(BaseModel):
    """One metric of one model, with its 95 % interval over `n` examples. Without a value, `reason` says why.

    `subject`: moved, target (alone), random, pad (controls), source_adapter, source, oracle.
    """

    subject: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str | None


class EvaluationOut(BaseModel):
    """The evaluation of running models on the request's data; `score`: what decides."""

    score: str | None = None
    examples: dict[str, int] = {}
    digest: str | None = None
    prompts: dict[str, Any] | None = None
    oracle: dict[str, Any] | None = None
    tasks: list[dict[str, Any]] = []
    settings: dict[str, Any] = {}
    figures: list[MetricOut]
    notes: list[str] = []


class DiagnosticsOut(BaseModel):
    """What the latest run measured: a summary, one object per target site, the layer similarities if both
    bases read a text, and the evaluation if one was requested."""

    job_id: str
    verdict: str | None
    summary: dict[str, Any] | None
    sites: list[dict[str, Any]]
    layer_map: LayerMapOut | None
    evaluation: EvaluationOut | None

    @classmethod
    def from_diagnostics(cls, job_id: str, diagnostics: Diagnostics) -> DiagnosticsOut:
        """Build from a job's diagnostics."""
        return cls.model_construct(
            job_id=job_id,
            verdict=diagnostics.verdict,
            summary=diagnostics.summary,
            sites=list(diagnostics.sites),
            layer_map=_build_layer_map(diagnostics),
            evaluation=_build_evaluation(diagnostics),
        )


def build_progress(job: JobRecord) -> ProgressOut | None:
    """A running job's progress; None if there is none."""
    if job.progress_done is None:
        return None
    return ProgressOut.model_construct(
        done=job.progress_done, total=job.progress_total, unit=job.progress_unit, eta_s=job.progress_eta_s
    )


def _build_layer_map(diagnostics: Diagnostics) -> LayerMapOut | None:
    if not diagnostics.layer_similarity.similarity:
        return None
    summary = (diagnostics.summary or {}).get("layer_map") or {}
    return LayerMapOut.model_construct(
        **{
            **summary,
            "similarity": diagnostics.layer_similarity.similarity,
            "layers": diagnostics.layer_similarity.layer_map,
        }
    )


def _build_evaluation(diagnostics: Diagnostics) -> EvaluationOut | None:
    summary = (diagnostics.summary or {}).get("evaluation")
    if summary is None:
        return None
    figures = [MetricOut.model_construct(**asdict(figure)) for figure in diagnostics.metrics]
    return EvaluationOut.model_construct(**{**summary, "figures": figures})


def _build_links(job: JobRecord) -> dict[str, str]:
    path = f"/jobs/{job.id}"
    links = {"self": path, "diagnostics": f"{path}/diagnostics", "events": f"{path}/events"}
    if job.request.get("callback") is not None:
        links["deliveries"] = f"{path}/deliveries"
    return {**links, "pool": f"/anchor-pools/{job.id}"} if job.kind == "pool" else links


def _build_resolved(job: JobRecord) -> ResolvedOut | None:
    if job.adapter_sha is None or job.source_repo is None or job.source_sha is None or job.target_sha is None:
        return None
    return ResolvedOut.model_construct(
        adapter_sha=job.adapter_sha,
        source_repo=job.source_repo,
        source_sha=job.source_sha,
        target_sha=job.target_sha,
        output_repo=job.output_repo,
    )
