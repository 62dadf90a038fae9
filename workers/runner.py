"""One job from claim to settlement: the only place where the pipeline meets SQL."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded

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
from rebase.logging import bind_log_context, get_logger
from rebase.schemas.anchor_pools import PoolRequest
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.subscriptions import ReleaseTask
from rebase.settings import Settings
from rebase.store.anchor_pools import ScopedAnchorPools
from rebase.store.hub_tokens import resolve_hub_token
from rebase.store.job_store import JobStore
from rebase.store.records import Claim, ConversionKind
from workers.device import is_out_of_memory
from workers.heart import Heart
from workers.hub.port import Published
from workers.job_watch import JobWatch
from workers.leftovers import forget
from workers.pipeline import run
from workers.publish import marker_of, publish, result_of, verdict_of
from workers.reconcile import look
from workers.register import register
from workers.release import follow
from workers.resolve import output_name
from workers.tools import Tools
from workers.writing import disk_trouble

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Desk:
    """What a worker process keeps between jobs."""

    settings: Settings
    store: JobStore
    tools: Tools
    owner: str


def tools_for(claim: Claim, desk: Desk) -> Tools:
    """The worker's tools with a hub that is asked with this job's token and no other. Raises SettingsInvalid
    for a token that was stored and cannot be opened here."""
    token = resolve_hub_token(desk.store, desk.settings, claim)
    return replace(desk.tools, hub=desk.tools.hub.with_token(token))


def run_job(job_id: str, desk: Desk) -> None:
    """Claim the job and bring it to an end. A doubled or late doorbell finds nothing to claim and returns."""
    try:
        claim = desk.store.claim(job_id, desk.owner, desk.settings.lease_s)
    except Busy:
        log.warning("claim_failed", job_id=job_id, exc_info=True)
        return  # the job still waits in SQL, and the sweeper rings again
    if claim is None:
        log.info("nothing_to_claim", job_id=job_id)
        return
    with bind_log_context(job_id=job_id, attempt=claim.attempt):
        log.info("claimed", kind=claim.kind)
        scratch = desk.settings.resolved_work_dir / f"{job_id}-{claim.attempt}"
        heart = Heart(desk.store, claim, every_s=desk.settings.heartbeat_s, lease_s=desk.settings.lease_s)
        with heart:
            try:
                _work(claim, desk, heart, scratch)
            except LeaseLost:
                log.warning("lease_lost")
            except Exception as exc:  # the last line of defence: a job always ends with a word to its user
                _settle(claim, desk, exc)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)


def _work(claim: Claim, desk: Desk, heart: Heart, scratch: Path) -> None:
    watch = JobWatch(desk.store, claim, heart)
    for left in scratch.parent.glob(f"{claim.job_id}-*"):  # by a worker that was killed, or has lost this job
        shutil.rmtree(left, ignore_errors=True)
    forget(scratch.parent, time.time())
    request, tools = claim.request, tools_for(claim, desk)
    if isinstance(request, ConversionRequest):
        result = _convert(claim, request, desk, tools, heart, watch, scratch)
    elif isinstance(request, PoolRequest):
        result = register(request, tools, watch)
    elif isinstance(request, ReleaseTask):
        result = follow(claim, request, desk.store, tools.hub, watch)
    else:
        result = look(claim, request, desk.store, tools.hub, watch)
    heart.check()
    _insist(lambda: desk.store.succeed(claim, result), desk.settings.lease_s)
    log.info("succeeded")


def _convert(
    claim: Claim,
    request: ConversionRequest,
    desk: Desk,
    tools: Tools,
    heart: Heart,
    watch: JobWatch,
    scratch: Path,
) -> dict[str, Any]:
    """The result of a conversion, published, or of a pre-check."""
    marker = marker_of(claim.job_id)
    with disk_trouble():
        scratch.mkdir(parents=True, exist_ok=True)
    kind: ConversionKind = "precheck" if claim.kind == "precheck" else "convert"
    pools = ScopedAnchorPools(desk.store, claim.tenant_id)
    outcome = run(request, kind, tools, watch, scratch / "adapter", marker=marker, pools=pools)
    heart.check()
    if isinstance(outcome, Published):
        log.info("already_published", commit=outcome.commit)
        desk.store.mark_publishing(claim)
        return result_of(tools.hub, outcome, None)
    if outcome.folder is None:
        return verdict_of(outcome.report)
    desk.store.mark_publishing(claim)
    published = publish(tools.hub, request, outcome, marker)
    log.info("published", repo=published.repo_id, commit=published.commit)
    return result_of(tools.hub, published, outcome.report)


def _settle(claim: Claim, desk: Desk, exc: Exception) -> None:
    """Write the end that an exception means. Losing the lease here means that somebody else will write it."""
    try:
        result = _standing(claim, desk, exc)
        if result is not None:
            log.info("already_published", commit=result["output"]["commit"])
            _insist(lambda: desk.store.succeed(claim, result), desk.settings.lease_s)
            return
    except LeaseLost:
        log.warning("lease_lost_while_settling")
        return
    except Exception as trouble:  # nobody knows yet whether a commit stands: another attempt looks again
        exc = trouble
    if isinstance(exc, SoftTimeLimitExceeded):
        exc = TimeLimit(
            f"The job ran longer than {desk.settings.soft_time_limit_s} s.",
            hint="Raise REBASE_SOFT_TIME_LIMIT_S, or use a faster machine or method.",
        )
    if is_out_of_memory(exc):
        exc = OutOfMemory(
            f"The worker ran out of memory on device '{desk.tools.device.type}'.",
            hint="Use a machine or GPU with more memory, REBASE_DEVICE=cpu, or a lower rank.",
        ).with_traceback(exc.__traceback__)
    error = to_public_error(exc)
    try:
        if isinstance(exc, Cancelled):
            log.info("cancelled")
            _insist(lambda: desk.store.mark_cancelled(claim), desk.settings.lease_s)
        elif isinstance(exc, Rejected):
            log.info("rejected")
            _insist(lambda: desk.store.reject(claim, error), desk.settings.lease_s)
        else:
            # The store knows the budget of attempts; this only says how long to wait if one is left.
            wait = desk.settings.retry_base_s * 2 ** (claim.attempt - 1) if error.retryable else None
            # A typed error says all there is to say; only what nobody foresaw needs its traceback.
            cause = exc if error.code == InternalError.code else None
            log.error("failed", code=error.code, message=error.message, retry_in_s=wait, exc_info=cause)
            _insist(lambda: desk.store.fail(claim, error, wait), desk.settings.lease_s)
    except LeaseLost:
        log.warning("lease_lost_while_settling")


def _standing(claim: Claim, desk: Desk, exc: Exception) -> dict[str, Any] | None:
    """The result of a commit that this job has made, whatever went wrong after it.

    None where there is none, and where another attempt will look anyway. Only conversions publish.
    """
    request = claim.request
    if claim.kind == "precheck" or not isinstance(request, ConversionRequest):
        return None
    if to_public_error(exc).retryable or not desk.store.has_started_publishing(claim):
        return None
    hub = tools_for(claim, desk).hub
    published = hub.find_commit(output_name(hub, request), marker_of(claim.job_id))
    return result_of(hub, published, None) if published is not None else None


def _insist(write: Callable[[], object], patience_s: float) -> None:
    """Try a final write until the lease would have run out; then the sweeper takes over."""
    deadline = time.monotonic() + patience_s
    wait = 0.1
    while True:
        try:
            write()
        except Busy:
            if time.monotonic() + wait > deadline:
                raise
            log.warning("settlement_delayed", exc_info=True)
            time.sleep(wait)
            wait = min(wait * 2, 5.0)
        else:
            return
