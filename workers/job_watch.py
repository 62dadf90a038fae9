"""The watch of a job: progress, resolved commits and evidence go to SQL; cancellation comes back."""

from __future__ import annotations

import time

from rebase.errors import Busy
from rebase.logging import get_logger
from rebase.schemas.states import Phase
from rebase.store.job_store import JobStore
from rebase.store.records import Claim, LayerSimilarityMatrix, MetricRow
from workers.heart import Heart
from workers.report import Report
from workers.watch import Resolved

log = get_logger(__name__)
_EVERY_S = 0.5  # progress inside a phase is written at most this often


class JobWatch:
    """Implements `workers.watch.Watch` for a claimed job."""

    def __init__(self, store: JobStore, claim: Claim, heart: Heart) -> None:
        self._store, self._claim, self._heart = store, claim, heart
        self._phase: Phase | None = None
        self._phase_began = self._written = 0.0

    def step(self, phase: Phase, done: int = 0, total: int | None = None, unit: str | None = None) -> None:
        """Raises Cancelled or LeaseLost; a progress row that cannot be written now is left out."""
        self._heart.check()
        now = time.monotonic()
        if phase is not self._phase:
            log.info("phase", phase=phase.value)
            self._phase, self._phase_began = phase, now
        elif now - self._written < _EVERY_S and done != total:
            return
        eta = (now - self._phase_began) / done * (total - done) if done and total else None
        try:
            self._store.report_progress(self._claim, phase, done, total, unit, eta)
        except Busy:
            log.warning("progress_not_written", exc_info=True)
        self._written = now

    def resolved(self, resolved: Resolved) -> None:
        """Pinned commits onto the job's row."""
        self._store.record_resolved(
            self._claim,
            adapter_sha=resolved.adapter_sha,
            source_repo=resolved.source_repo,
            source_sha=resolved.source_sha,
            target_sha=resolved.target_sha,
            output_repo=resolved.output_repo,
        )

    def diagnosed(self, report: Report) -> None:
        """The evidence so far, replacing what an earlier call or attempt left."""
        document = report.model_dump(mode="json")
        sites = document.pop("sites")
        found = LayerSimilarityMatrix()
        if document["layer_map"] is not None:
            matrix, layers = document["layer_map"].pop("similarity"), document["layer_map"].pop("layers")
            found = LayerSimilarityMatrix(matrix, layers)
        figures = []
        if document["evaluation"] is not None:
            figures = [MetricRow(**figure) for figure in document["evaluation"].pop("figures")]
        verdict = report.precheck.verdict
        self._store.save_diagnostics(self._claim, document, sites, verdict, found, figures)
