"""The progress reporter of a job: writes progress, resolved commits and evidence to SQL."""

from __future__ import annotations

import time

from rebase.errors import Busy
from rebase.logging import get_logger
from rebase.report.progress import ResolvedRevisions
from rebase.report.schema import Report
from rebase.schemas.states import Phase
from rebase.store.records import Claim, LayerSimilarityMatrix, MetricRow
from rebase.store.store import Store
from workers.lease import LeaseHeartbeat

log = get_logger(__name__)
_WRITE_INTERVAL_S = 0.5  # minimum time between progress writes within a phase


class JobProgress:
    """Implements `rebase.report.progress.ProgressReporter` for a claimed job."""

    def __init__(self, store: Store, claim: Claim, heartbeat: LeaseHeartbeat) -> None:
        self._store, self._claim, self._heartbeat = store, claim, heartbeat
        self._phase: Phase | None = None
        self._phase_started = self._last_written = 0.0

    def update(self, phase: Phase, done: int = 0, total: int | None = None, unit: str | None = None) -> None:
        """Write progress, unless the database is busy. Raises Cancelled or LeaseLost."""
        self._heartbeat.check()
        now = time.monotonic()
        if phase is not self._phase:
            log.info("phase", phase=phase.value)
            self._phase, self._phase_started = phase, now
        elif now - self._last_written < _WRITE_INTERVAL_S and done != total:
            return
        eta = (now - self._phase_started) / done * (total - done) if done and total else None
        try:
            self._store.queue.report_progress(self._claim, phase, done, total, unit, eta)
        except Busy:
            log.warning("progress_not_written", exc_info=True)
        self._last_written = now

    def report_resolved(self, revisions: ResolvedRevisions) -> None:
        """Write the pinned commits to the job's row."""
        self._store.queue.record_resolved(
            self._claim,
            adapter_sha=revisions.adapter_sha,
            source_repo=revisions.source_repo,
            source_sha=revisions.source_sha,
            target_sha=revisions.target_sha,
            output_repo=revisions.output_repo,
        )

    def report_evidence(self, report: Report) -> None:
        """Write the evidence so far, replacing that of earlier calls and attempts."""
        document = report.model_dump(mode="json")
        sites = document.pop("sites")
        layer_similarity = LayerSimilarityMatrix()
        if document["layer_map"] is not None:
            matrix, layer_map = document["layer_map"].pop("similarity"), document["layer_map"].pop("layers")
            layer_similarity = LayerSimilarityMatrix(matrix, layer_map)
        metrics = []
        if document["evaluation"] is not None:
            metrics = [MetricRow(**figure) for figure in document["evaluation"].pop("figures")]
        verdict = report.precheck.verdict
        self._store.queue.save_diagnostics(self._claim, document, sites, verdict, layer_similarity, metrics)
