"""Schema of the conversion report: the versioned document behind SQL, the published report and the card.

It contains no time and no job id, so that the same inputs give the same bytes.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from rebase.hub.base import PinnedRepo
from rebase.report.selection import Selection

REPORT_FILE = "rebase_report.json"


SCHEMA_VERSION = 1
NOT_EVALUATED = "No task was evaluated: the figures in this report describe the weights, not the skill."
_LIBRARIES = ("torch", "transformers", "peft", "safetensors")


class _ReportModel(BaseModel):
    model_config = ConfigDict(frozen=True)


class RepoRevision(_ReportModel):
    """A repo, or one folder of it, at a pinned commit."""

    repo_id: str
    sha: str
    subfolder: str | None = Field(default=None, exclude_if=lambda value: value is None)

    @property
    def identity(self) -> str:
        """The commit, and the subfolder if there is one."""
        return f"{self.sha}:{self.subfolder}" if self.subfolder else self.sha

    @classmethod
    def from_pinned(cls, repo: PinnedRepo) -> RepoRevision:
        """Under the names by which others find it."""
        public = repo.public
        return cls(repo_id=public.repo_id, sha=public.sha, subfolder=public.subfolder)


class FindingRow(_ReportModel):
    """One reason for the verdict."""

    code: str
    message: str
    weight: str


class Precheck(_ReportModel):
    """The pre-check's verdict, made before the transfer."""

    verdict: Literal["compatible", "uncertain", "incompatible"]
    reasons: list[FindingRow]
    measurements: dict[str, float]


class SiteRow(_ReportModel):
    """The result at one target site."""

    source: str
    target: str
    measurements: dict[str, float]
    flags: list[str]


class AnchorRow(_ReportModel):
    """One anchor's part in a prediction: weight c_i, leverage h_ii, and relative leave-one-out error."""

    source: RepoRevision
    target: RepoRevision
    domain: str
    weight: float
    leverage: float
    loo_error: float


class PoolSection(_ReportModel):
    """The anchor pool behind a prediction; `curve`: each setting tried, with its error."""

    id: str | None
    anchors: list[AnchorRow]
    curve: list[dict[str, float]]


class CorpusInfo(_ReportModel):
    """The text that both bases read; `digest`: of its documents."""

    name: str
    digest: str
    documents: int


class LayerMap(_ReportModel):
    """Similarity of the layers on the same text, and the source layer paired with each target layer.

    similarity[source layer][target layer]: debiased CKA over `positions` token positions common to both
    tokenizations; `coverage_source`, `coverage_target`: the fraction of each side's tokens that these are.
    `layers`: target layer → source layer. `coverage`: fraction of target layers whose best source layer is
    above `threshold`. `biased`: plain CKA along the pairing, for comparison; few positions inflate it.
    """

    similarity: list[list[FiniteFloat]]
    layers: list[int]
    coverage: FiniteFloat
    threshold: FiniteFloat
    positions: int
    coverage_source: FiniteFloat
    coverage_target: FiniteFloat
    biased: list[FiniteFloat] | None = None
    corpus: CorpusInfo

    @model_validator(mode="after")
    def _validate_dimensions(self) -> LayerMap:
        targets = len(self.layers)
        if not targets or not self.similarity or any(len(row) != targets for row in self.similarity):
            raise ValueError("similarity must have one row per source layer and one column per target layer")
        if not all(0 <= source < len(self.similarity) for source in self.layers):
            raise ValueError("layers names a source layer that does not exist")
        if self.biased is not None and len(self.biased) != targets:
            raise ValueError("biased must have one entry per target layer")
        return self


class Verification(_ReportModel):
    """Results of the checks before publishing. `forward_scope`: how much of the target was run."""

    tensors: int
    forward_scope: str
    logit_change: float
    mean_kl: float


_ADAPTER_METRICS = ("score", "difference", "over_random", "retention", "gap_recovered", "safety_drift")
Subject = Literal["moved", "target", "random", "pad", "source_adapter", "source", "oracle"]


class Metric(_ReportModel):
    """One metric of one model, with its 95 % interval over `n` examples. `reason`: why it has no value.
    Without an interval it is not a mean over examples."""

    subject: Subject
    metric: str
    value: FiniteFloat | None
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    n: int
    reason: str | None = None


class TaskInfo(_ReportModel):
    """A task of lm-evaluation-harness, as run."""

    name: str
    version: str
    documents: int
    num_fewshot: int | None


class Evaluation(_ReportModel):
    """Evaluation on examples, tasks and prompts. docs/evaluation.md explains every metric.

    `score`: the primary metric (`accuracy`, `likelihood`, or a task's metric; None if there is none);
    `examples`: how many of each kind; `digest`: of all examples; `prompts`: for the refusal probe;
    `settings`: seed, resamples and lengths; `notes`: limitations.
    """

    score: str | None
    examples: dict[str, int]
    digest: str
    prompts: CorpusInfo | None = None
    oracle: RepoRevision | None = None
    tasks: list[TaskInfo] = []
    settings: dict[str, Any]
    figures: list[Metric]
    notes: list[str] = []

    def find_metric(self, subject: Subject, metric: str) -> Metric | None:
        """One of the metrics, or None."""
        matches = (row for row in self.figures if (row.subject, row.metric) == (subject, metric))
        return next(matches, None)

    def summarize(self) -> dict[str, Any]:
        """The part for a job's result: all scores, and the comparisons of the transferred adapter."""
        keys = [
            *(("moved", name) for name in _ADAPTER_METRICS),
            *((subject, "score") for subject in get_args(Subject) if subject != "moved"),
        ]
        metrics = [figure for key in keys if (figure := self.find_metric(*key)) is not None]
        return {"score": self.score, "figures": [figure.model_dump(mode="json") for figure in metrics]}


class Report(_ReportModel):
    """`rebase_report.json`."""

    schema_version: int = SCHEMA_VERSION
    rebase_version: str
    libraries: dict[str, str]
    adapter: RepoRevision
    source: RepoRevision
    target: RepoRevision
    method_requested: dict[str, Any]
    method_used: dict[str, Any]
    precheck: Precheck
    sites: list[SiteRow] = []
    summary: dict[str, float] = {}
    dropped_sites: list[str] = []
    unused_source_layers: list[int] = []
    not_carried: list[str] = []
    warnings: list[str] = []
    selection: Selection | None = None
    pool: PoolSection | None = None
    layer_map: LayerMap | None = None
    cast_heads_trained_on: RepoRevision | None = None
    training_curve: list[dict[str, FiniteFloat]] = []  # held-out loss in nats per token, against steps
    output: dict[str, Any] = {}
    verification: Verification | None = None
    evaluation: Evaluation | None = None
    caveats: list[str] = []

    def to_json(self) -> str:
        """Stable text: sorted keys, finite numbers only."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True, allow_nan=False) + "\n"


def get_library_versions() -> dict[str, str]:
    """Versions of the libraries that affect the bytes of the result."""
    return {name: importlib.metadata.version(name).split("+")[0] for name in _LIBRARIES}


def get_rebase_version() -> str:
    """This project's own version."""
    return importlib.metadata.version("rebase-lora")


def keep_finite(measurements: dict[str, float]) -> dict[str, float]:
    """The finite measurements, sorted by name; others are omitted instead of written as NaN."""
    return {name: float(value) for name, value in sorted(measurements.items()) if math.isfinite(value)}


def summarize_sites(sites: Sequence[SiteRow]) -> dict[str, float]:
    """Mean, minimum and maximum of every measurement over the sites, and the number of sites with each
    flag."""
    summary: dict[str, float] = {"sites": float(len(sites))}
    for name in sorted({name for row in sites for name in row.measurements}):
        values = [row.measurements[name] for row in sites if name in row.measurements]
        summary[f"{name}.mean"] = math.fsum(values) / len(values)
        summary[f"{name}.min"] = min(values)
        summary[f"{name}.max"] = max(values)
    for flag in sorted({flag for row in sites for flag in row.flags}):
        summary[f"flag.{flag}"] = float(sum(flag in row.flags for row in sites))
    return summary


def build_caveats(
    precheck: Precheck,
    *,
    dropped: int,
    not_carried: int,
    flags: set[str],
    used_corpus: bool = False,
) -> list[str]:
    """Sentences to help decide whether to trust the result. `used_corpus`: both bases read a text."""
    lines = []
    if precheck.verdict == "incompatible":
        lines.append(
            "The pre-check found this pair incompatible; it was converted because the request asked for it."
        )
    if precheck.verdict == "uncertain":
        evidence_source = "The bases' activations on a text" if used_corpus else "The weights alone"
        lines.append(
            f"{evidence_source} could not show whether this skill survives. Evaluate the adapter before "
            "you use it."
        )
    if dropped:
        lines.append(
            f"{dropped} adapted module(s) have no counterpart in the target, so their updates are lost."
        )
    if not_carried:
        lines.append(
            f"{not_carried} trained part(s) of the adapter are not low-rank updates and were not transferred."
        )
    if "index_alignment" in flags:
        lines.append(
            "Singular vectors were matched only by order, which is arbitrary between different models."
        )
    if "anchors_uninformative" in flags:
        lines.append(
            "At some sites, the shared vocabulary aligned the models no better than a shuffled pairing."
        )
    if "heads_of_another_adapter" in flags:
        lines.append(
            "At some sites, the maps were trained with another adapter, in directions that contain less "
            "than half of this one; without reuse=true, maps are trained for this adapter."
        )
    return [*lines, NOT_EVALUATED]


def merge_site_rows(rows: Sequence[SiteRow], fold_lost: Mapping[str, float]) -> list[SiteRow]:
    """One row per target site. Where several layers were folded into one, measurements are means.
    `fold_lost`: target → fraction of ‖ΔW‖² lost to truncation."""
    by_target: dict[str, list[SiteRow]] = {}
    for row in rows:
        by_target.setdefault(row.target, []).append(row)
    return [_merge_rows(parts, fold_lost.get(target)) for target, parts in by_target.items()]


def _merge_rows(rows: Sequence[SiteRow], lost: float | None) -> SiteRow:
    if lost is None:
        return rows[0]
    names = sorted({name for row in rows for name in row.measurements})
    means = {
        name: math.fsum(values) / len(values)
        for name in names
        if (values := [row.measurements[name] for row in rows if name in row.measurements])
    }
    return SiteRow(
        source="+".join(row.source for row in rows),
        target=rows[0].target,
        measurements={**means, "folded": float(len(rows)), "fold_lost": lost},
        flags=sorted({flag for row in rows for flag in row.flags}),
    )
