"""What the job store hands out: plain values, detached from the database."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Row

from core.errors import RequestInvalid
from core.pools import PoolRequest
from core.releases.tasks import ReconcileTask, ReleaseTask
from core.requests import ConversionRequest
from core.states import TERMINAL, JobState

ConversionKind = Literal["convert", "precheck"]
Kind = Literal["convert", "precheck", "pool", "release", "reconcile"]
INTERNAL_KINDS: tuple[Kind, ...] = (
    "release",
    "reconcile",
)  # the service's own work: no client is shown these
JobRequest = ConversionRequest | PoolRequest | ReleaseTask | ReconcileTask
_REQUEST_MODELS: dict[Kind, type[JobRequest]] = {
    "convert": ConversionRequest,
    "precheck": ConversionRequest,
    "pool": PoolRequest,
    "release": ReleaseTask,
    "reconcile": ReconcileTask,
}


def get_request_model(kind: Kind) -> type[JobRequest]:
    """What `jobs.request` holds for this kind."""
    return _REQUEST_MODELS[kind]


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as its owner may see it. Once `done`, exactly one of `result` and `error` is set."""

    id: str
    tenant_id: str
    kind: Kind
    state: JobState
    request: dict[str, Any]
    attempt: int
    attempt_limit: int
    cancel_requested: bool
    not_before: datetime | None
    phase: str | None
    progress_done: int | None
    progress_total: int | None
    progress_unit: str | None
    progress_eta_s: float | None
    adapter_sha: str | None
    source_repo: str | None
    source_sha: str | None
    target_sha: str | None
    output_repo: str | None
    verdict: str | None
    diagnostics: dict[str, Any] | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    version: int
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def is_done(self) -> bool:
        """No move comes by itself any more."""
        return self.state in TERMINAL

    @classmethod
    def from_row(cls, row: Row[Any]) -> JobRecord:
        """Take the columns that a record has from a row of `jobs`."""
        values = row._mapping
        fields = {name: values[name] for name in cls.__slots__}
        return cls(**{**fields, "state": JobState(fields["state"])})


@dataclass(frozen=True, slots=True)
class JobPage:
    """Some jobs, newest first, and the cursor of those after them (None: there are none)."""

    jobs: tuple[JobRecord, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One row of a job's history. `id` rises."""

    id: int
    at: datetime
    type: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class LayerSimilarityMatrix:
    """similarity[source layer][target layer]; `layers`: target layer → source layer. Both empty: no map."""

    similarity: Sequence[Sequence[float]] = ()
    layer_map: Sequence[int] = ()


NO_LAYER_SIMILARITY = LayerSimilarityMatrix()


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One figure of an evaluation: of which model, with its 95 % interval and over how many examples; or why
    there is none."""

    subject: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """What a run measured: one summary, one object per target site, how alike the layers are, and the figures
    of an evaluation."""

    verdict: str | None
    summary: dict[str, Any] | None
    sites: tuple[dict[str, Any], ...]
    layer_similarity: LayerSimilarityMatrix = NO_LAYER_SIMILARITY
    metrics: tuple[MetricRow, ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's hold on a job; `attempt` and `owner` fence every write that it makes."""

    job_id: str
    tenant_id: str
    kind: Kind
    request: JobRequest
    attempt: int
    owner: str


def encode_cursor(job_id: str) -> str:
    """An opaque token for `the page after this job`."""
    return base64.urlsafe_b64encode(bytes.fromhex(job_id)).decode().rstrip("=")


def decode_cursor(cursor: str) -> str:
    """The job id inside a cursor. Raises RequestInvalid for anything that `encode_cursor` did not make."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 16:
        raise RequestInvalid(
            "The cursor is not one that this service gave out.",
            hint="Start again without 'cursor'.",
            pointer="/cursor",
        )
    return raw.hex()
