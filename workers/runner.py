"""Runs one job from claim to settlement: the only place where the engine meets SQL."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded

from rebase.conversion.output_folder import remove_stale
from rebase.conversion.pipeline import run_conversion
from rebase.conversion.plan import plan_conversion
from rebase.conversion.publish import build_result, build_verdict, make_commit_marker, publish
from rebase.conversion.resolve import choose_output_repo
from rebase.errors import (
    Busy,
    Cancelled,
    InternalError,
    LeaseLost,
    OutOfMemory,
    Rejected,
    TimeLimit,
    to_public_error,
)
from rebase.evidence.pool_registration import register_pool
from rebase.hub.base import Published
from rebase.logging import bind_log_context, get_logger
from rebase.retry import Backoff, retry
from rebase.runtime import Runtime, disk_errors, is_out_of_memory
from rebase.schemas.anchor_pools import PoolRequest
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.states import ConversionKind
from rebase.schemas.subscriptions import ReleaseTask
from rebase.settings import Settings
from rebase.store.anchor_pools import ScopedAnchorPools
from rebase.store.hub_tokens import resolve_hub_token
from rebase.store.records import Claim
from rebase.store.store import Store
from workers.job_progress import JobProgress
from workers.lease import LeaseHeartbeat
from workers.reconcile_job import run_reconcile_job
from workers.release_job import run_release_job

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """State that a worker process keeps between jobs."""

    settings: Settings
    store: Store
    runtime: Runtime
    lease_owner: str


def make_job_runtime(claim: Claim, context: WorkerContext) -> Runtime:
    """The worker's runtime, with a hub that uses only this job's token. Raises SettingsInvalid if a stored
    token cannot be decrypted here."""
    token = resolve_hub_token(context.store, context.settings, claim)
    return replace(context.runtime, hub=context.runtime.hub.with_token(token))


def run_job(job_id: str, context: WorkerContext) -> None:
    """Claim the job, run it and settle it. For a duplicate or late notification there is nothing to claim."""
    try:
        claim = context.store.queue.claim(job_id, context.lease_owner, context.settings.lease_s)
    except Busy:
        log.warning("claim_failed", job_id=job_id, exc_info=True)
        return  # the job is still queued in SQL, and the scheduler sends another notification
    if claim is None:
        log.info("nothing_to_claim", job_id=job_id)
        return
    with bind_log_context(job_id=job_id, attempt=claim.attempt):
        log.info("claimed", kind=claim.kind)
        work_dir = context.settings.resolved_work_dir / f"{job_id}-{claim.attempt}"
        heartbeat = LeaseHeartbeat(
            context.store, claim, interval_s=context.settings.heartbeat_s, lease_s=context.settings.lease_s
        )
        with heartbeat:
            try:
                _execute(claim, context, heartbeat, work_dir)
            except LeaseLost:
                log.warning("lease_lost")
            except Exception as exc:  # last line of defence: a job always ends with an outcome for its user
                _finish(claim, context, exc)
            finally:
                shutil.rmtree(work_dir, ignore_errors=True)


def _execute(claim: Claim, context: WorkerContext, heartbeat: LeaseHeartbeat, work_dir: Path) -> None:
    progress = JobProgress(context.store, claim, heartbeat)
    for leftover in work_dir.parent.glob(
        f"{claim.job_id}-*"
    ):  # from a worker that was killed or lost its lease
        shutil.rmtree(leftover, ignore_errors=True)
    remove_stale(work_dir.parent, time.time())
    request, runtime = claim.request, make_job_runtime(claim, context)
    if isinstance(request, ConversionRequest):
        result = _convert(claim, request, context, runtime, heartbeat, progress, work_dir)
    elif isinstance(request, PoolRequest):
        result = register_pool(request, runtime, progress)
    elif isinstance(request, ReleaseTask):
        result = run_release_job(claim, request, context.store, runtime.hub, progress)
    else:
        result = run_reconcile_job(claim, request, context.store, runtime.hub, progress)
    heartbeat.check()
    _retry_while_busy(lambda: context.store.queue.succeed(claim, result), context.settings.lease_s)
    log.info("succeeded")


def _convert(
    claim: Claim,
    request: ConversionRequest,
    context: WorkerContext,
    runtime: Runtime,
    heartbeat: LeaseHeartbeat,
    progress: JobProgress,
    work_dir: Path,
) -> dict[str, Any]:
    """Run a conversion and publish it, or run a pre-check. Returns the job's result."""
    marker = make_commit_marker(claim.job_id)
    with disk_errors():
        work_dir.mkdir(parents=True, exist_ok=True)
    kind: ConversionKind = "precheck" if claim.kind == "precheck" else "convert"
    pools = ScopedAnchorPools(context.store.pools, claim.tenant_id)
    outcome = run_conversion(
        plan_conversion(request, kind), runtime, progress, work_dir / "adapter", marker=marker, pools=pools
    )
    heartbeat.check()
    if isinstance(outcome, Published):
        log.info("already_published", commit=outcome.commit)
        context.store.queue.mark_publishing(claim)
        return build_result(runtime.hub, outcome, None)
    if outcome.folder is None:
        return build_verdict(outcome.report)
    context.store.queue.mark_publishing(claim)
    published = publish(runtime.hub, request.output, outcome, marker)
    log.info("published", repo=published.repo_id, commit=published.commit)
    return build_result(runtime.hub, published, outcome.report)


def _finish(claim: Claim, context: WorkerContext, exc: Exception) -> None:
    """Settle the job after an exception. If the lease is lost here, another worker will settle it."""
    try:
        result = _find_published_result(claim, context, exc)
        if result is not None:
            log.info("already_published", commit=result["output"]["commit"])
            _retry_while_busy(lambda: context.store.queue.succeed(claim, result), context.settings.lease_s)
            return
    except LeaseLost:
        log.warning("lease_lost_while_settling")
        return
    except Exception as lookup_error:  # whether a commit exists is unknown; another attempt will check
        exc = lookup_error
    if isinstance(exc, SoftTimeLimitExceeded):
        exc = TimeLimit(
            f"The job ran longer than {context.settings.soft_time_limit_s} s.",
            hint="Raise REBASE_SOFT_TIME_LIMIT_S, or use a faster machine or method.",
        )
    if is_out_of_memory(exc):
        exc = OutOfMemory(
            f"The worker ran out of memory on device '{context.runtime.device.type}'.",
            hint="Use a machine or GPU with more memory, REBASE_DEVICE=cpu, or a lower rank.",
        ).with_traceback(exc.__traceback__)
    error = to_public_error(exc)
    try:
        if isinstance(exc, Cancelled):
            log.info("cancelled")
            _retry_while_busy(lambda: context.store.queue.mark_cancelled(claim), context.settings.lease_s)
        elif isinstance(exc, Rejected):
            log.info("rejected")
            _retry_while_busy(lambda: context.store.queue.reject(claim, error), context.settings.lease_s)
        else:
            # The store knows how many attempts are left; this is only the delay before the next one.
            retry_delay_s = (
                context.settings.retry_base_s * 2 ** (claim.attempt - 1) if error.retryable else None
            )
            # Typed errors are self-explanatory; only unexpected ones need a traceback.
            cause = exc if error.code == InternalError.code else None
            log.error(
                "failed", code=error.code, message=error.message, retry_in_s=retry_delay_s, exc_info=cause
            )
            _retry_while_busy(
                lambda: context.store.queue.fail(claim, error, retry_delay_s), context.settings.lease_s
            )
    except LeaseLost:
        log.warning("lease_lost_while_settling")


def _find_published_result(claim: Claim, context: WorkerContext, exc: Exception) -> dict[str, Any] | None:
    """The result of a commit that this job has already published, if something failed afterwards.

    None if there is none, or if a retry will check anyway. Only conversions publish.
    """
    request = claim.request
    if claim.kind == "precheck" or not isinstance(request, ConversionRequest):
        return None
    if to_public_error(exc).retryable or not context.store.queue.has_started_publishing(claim):
        return None
    hub = make_job_runtime(claim, context).hub
    published = hub.find_commit(
        choose_output_repo(hub, request.adapter, request.target, request.output),
        make_commit_marker(claim.job_id),
    )
    return build_result(hub, published, None) if published is not None else None


def _retry_while_busy(write: Callable[[], object], timeout_s: float) -> None:
    """Retry a final write until the lease would have expired; then the scheduler requeues the job."""
    retry(
        write,
        Busy,
        Backoff(0.1, max_s=5.0),
        timeout_s=timeout_s,
        on_retry=lambda exc: log.warning("settlement_delayed", exc_info=exc),
    )
