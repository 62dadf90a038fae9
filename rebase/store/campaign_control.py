"""What a campaign's owner can do with it: pause, resume, cancel, retry and approve.

Every operation locks the campaign's row first, then its jobs in id order.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select, update

from rebase.errors import StateConflict
from rebase.schemas.repos import RepoRef
from rebase.schemas.states import TERMINAL, CampaignDbState, CampaignState, JobState
from rebase.schemas.subscriptions import ReleaseTask
from rebase.store.audit import AuditContext, write_audit_event
from rebase.store.campaigns import load_campaign
from rebase.store.job_events import enqueue_notifications
from rebase.store.job_submission import insert_jobs
from rebase.store.jobs import cancel_locked, retry_locked
from rebase.store.limits import load_limits
from rebase.store.quota import require_quota
from rebase.store.records import CampaignRecord, JobRecord
from rebase.store.release_decisions import add_campaign_jobs
from rebase.store.releases import build_release_job
from rebase.store.repository import Repository
from rebase.store.tables.jobs import Job
from rebase.store.tables.releases import Campaign, CampaignJob

_WAITING_STATES = frozenset({JobState.QUEUED, JobState.RETRY_WAIT})
_RETRYABLE_STATES = frozenset({JobState.FAILED, JobState.CANCELLED})
_UNDECIDED_STATES = frozenset({CampaignState.WAITING, CampaignState.REFUSED})
_APPROVED_STATES = frozenset({CampaignState.CONVERTING, CampaignState.FINISHED})


class CampaignControl(Repository):
    """Every method raises NotFound, and StateConflict when the campaign's state does not allow the change.
    `audit`: the actor recorded in the audit log."""

    def pause(self, tenant_id: str, campaign_id: str, audit: AuditContext | None = None) -> CampaignRecord:
        """Stop claiming its queued jobs; running ones finish. Idempotent."""
        with self.db.write() as connection:
            row = _lock_campaign(connection, tenant_id, campaign_id)
            if row.state not in (CampaignDbState.OPEN.value, CampaignDbState.PAUSED.value):
                raise StateConflict(f"Only a running campaign can be paused; it is '{row.state}'.")
            _update_campaign(connection, campaign_id, self.clock(), state=CampaignDbState.PAUSED.value)
            write_audit_event(connection, self.clock(), audit, "campaign.paused", campaign_id)
            return load_campaign(connection, tenant_id, campaign_id)

    def resume(self, tenant_id: str, campaign_id: str, audit: AuditContext | None = None) -> CampaignRecord:
        """Resume, and notify workers of its queued jobs. Idempotent."""
        now = self.clock()
        with self.db.write() as connection:
            row = _lock_campaign(connection, tenant_id, campaign_id)
            if row.state not in (CampaignDbState.OPEN.value, CampaignDbState.PAUSED.value):
                raise StateConflict(f"Only a paused campaign can be resumed; it is '{row.state}'.")
            if row.state == CampaignDbState.PAUSED.value:
                _update_campaign(connection, campaign_id, now, state=CampaignDbState.OPEN.value)
                enqueue_notifications(
                    connection, [job.id for job in _lock_jobs(connection, campaign_id, _WAITING_STATES)], now
                )
            write_audit_event(connection, now, audit, "campaign.resumed", campaign_id)
            return load_campaign(connection, tenant_id, campaign_id)

    def cancel(self, tenant_id: str, campaign_id: str, audit: AuditContext | None = None) -> CampaignRecord:
        """Cancel every unfinished job, except those that are being published. Idempotent."""
        now = self.clock()
        with self.db.write() as connection:
            _lock_campaign(connection, tenant_id, campaign_id)
            campaign = load_campaign(connection, tenant_id, campaign_id)
            if campaign.state is CampaignState.FINISHED:
                raise StateConflict("The campaign has finished, so there is nothing left to cancel.")
            _update_campaign(connection, campaign_id, now, state=CampaignDbState.CANCELLED.value)
            cancellable = frozenset(JobState) - TERMINAL - {JobState.PUBLISHING}
            for job in _lock_jobs(connection, campaign_id, cancellable):
                if not job.cancel_requested:
                    cancel_locked(connection, job, now)
            write_audit_event(connection, now, audit, "campaign.cancelled", campaign_id)
            return load_campaign(connection, tenant_id, campaign_id)

    def retry(self, tenant_id: str, campaign_id: str, audit: AuditContext | None = None) -> CampaignRecord:
        """Queue failed and cancelled jobs again (never rejected ones: their verdict is final). For a campaign
        that was refused or is waiting, check its release again instead."""
        now = self.clock()
        with self.db.write() as connection:
            row = _lock_campaign(connection, tenant_id, campaign_id)
            campaign = load_campaign(connection, tenant_id, campaign_id)
            if campaign.state in _UNDECIDED_STATES:
                self._enqueue_recheck(connection, tenant_id, campaign)
                write_audit_event(connection, now, audit, "campaign.retried", campaign_id)
                return campaign
            jobs = _lock_jobs(connection, campaign_id, _RETRYABLE_STATES)
            if not jobs:
                raise StateConflict("The campaign has no failed or cancelled job to retry.")
            limits = load_limits(connection, tenant_id, self.limits)
            require_quota(connection, tenant_id, limits, now, is_new=False, count=len(jobs))
            for job in jobs:
                retry_locked(connection, job.id, now, self.max_attempts)
            if row.state == CampaignDbState.CANCELLED.value:
                _update_campaign(connection, campaign_id, now, state=CampaignDbState.OPEN.value)
            write_audit_event(connection, now, audit, "campaign.retried", campaign_id)
            return load_campaign(connection, tenant_id, campaign_id)

    def approve(self, tenant_id: str, campaign_id: str, audit: AuditContext | None = None) -> CampaignRecord:
        """After a dry run: convert every adapter whose pre-check is not `incompatible`. Calling it again
        converts adapters that have passed since, for example after a retried pre-check."""
        now = self.clock()
        with self.db.write() as connection:
            _lock_campaign(connection, tenant_id, campaign_id)
            campaign = load_campaign(connection, tenant_id, campaign_id)
            passed = _find_passed_positions(connection, campaign_id)
            if campaign.approved_at is not None and (not passed or campaign.state not in _APPROVED_STATES):
                return campaign
            if campaign.approved_at is None and campaign.state is not CampaignState.AWAITING_APPROVAL:
                raise StateConflict(
                    f"Only a dry run whose pre-checks have ended can be approved; it is '{campaign.state}'.",
                    hint="Wait until GET /campaigns/{id} says 'awaiting_approval'.",
                )
            outputs = campaign.decision["outputs"]
            chosen_outputs = {position: outputs[str(position)] for position in passed}
            limits = load_limits(connection, tenant_id, self.limits)
            require_quota(connection, tenant_id, limits, now, count=len(chosen_outputs))
            _update_campaign(connection, campaign_id, now, approved_at=campaign.approved_at or now)
            target = RepoRef(repo_id=campaign.repo_id, revision=campaign.sha)
            add_campaign_jobs(
                self, connection, tenant_id, campaign.spec, campaign_id, target, "convert", chosen_outputs
            )
            write_audit_event(connection, now, audit, "campaign.approved", campaign_id)
            return load_campaign(connection, tenant_id, campaign_id)

    def _enqueue_recheck(self, connection: Connection, tenant_id: str, campaign: CampaignRecord) -> None:
        if campaign.subscription_id is None:
            raise StateConflict("The subscription of this campaign was deleted.")
        task_fields = {"subscription_id": campaign.subscription_id, "repo_id": campaign.repo_id}
        # These jobs count towards no tenant limit, so queue at most one. The campaign's row is locked.
        waiting = select(Job.request).where(
            Job.tenant_id == tenant_id,
            Job.kind == "release",
            Job.target_repo == campaign.repo_id,
            Job.state.in_(sorted(state.value for state in _WAITING_STATES)),
        )
        if any(task_fields.items() <= request.items() for request in connection.scalars(waiting)):
            return
        task = ReleaseTask.model_validate({**task_fields, "sha": campaign.sha, "seen_by": "retry"})
        insert_jobs(connection, [build_release_job(self, tenant_id, task)])


def _lock_campaign(connection: Connection, tenant_id: str, campaign_id: str) -> Row[Any]:
    load_campaign(connection, tenant_id, campaign_id)
    query = select(Campaign.state).where(Campaign.id == campaign_id).with_for_update()
    return connection.execute(query).one()


def _update_campaign(connection: Connection, campaign_id: str, now: datetime, **values: Any) -> None:
    connection.execute(update(Campaign).where(Campaign.id == campaign_id).values(**values, updated_at=now))


def _lock_jobs(connection: Connection, campaign_id: str, states: Collection[JobState]) -> list[JobRecord]:
    """Lock and return the campaign's jobs in these states."""
    query = (
        select(Job.__table__)
        .join(CampaignJob, CampaignJob.job_id == Job.id)
        .where(CampaignJob.campaign_id == campaign_id, Job.state.in_(sorted(state.value for state in states)))
        .order_by(Job.id)
        .with_for_update(of=Job)
    )
    return [JobRecord.from_row(row) for row in connection.execute(query)]


def _find_passed_positions(connection: Connection, campaign_id: str) -> list[int]:
    """Positions of adapters whose pre-check succeeded with a verdict other than incompatible and that have no
    conversion yet."""
    with_conversion = select(CampaignJob.position).where(
        CampaignJob.campaign_id == campaign_id, CampaignJob.stage == "convert"
    )
    query = (
        select(CampaignJob.position)
        .join(Job, Job.id == CampaignJob.job_id)
        .where(CampaignJob.campaign_id == campaign_id, CampaignJob.stage == "precheck")
        .where(Job.state == JobState.SUCCEEDED.value, Job.verdict != "incompatible")
        .where(CampaignJob.position.not_in(with_conversion))
    )
    return sorted(connection.scalars(query))
