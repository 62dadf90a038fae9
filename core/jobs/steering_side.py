"""What a campaign's owner may do with it: pause, resume, cancel, retry, approve.

Every move locks the campaign's row first, then its jobs in the order of their ids.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select, update

from core.audit import Trail, write_line
from core.errors import StateConflict
from core.jobs.base import add_bells
from core.jobs.campaigns_side import CampaignsSide, load_campaign
from core.jobs.client_side import cancel_locked, retry_locked
from core.jobs.decisions_side import DecisionsSide
from core.jobs.insert import insert_jobs
from core.jobs.records import JobRecord
from core.jobs.release_records import CampaignRecord
from core.jobs.room import check_room
from core.limits import limits_of
from core.releases.states import CampaignState, Stored
from core.releases.tasks import ReleaseTask
from core.repos import RepoRef
from core.states import TERMINAL, JobState
from core.tables.jobs import Job
from core.tables.releases import Campaign, CampaignJob

_WAITING = frozenset({JobState.QUEUED, JobState.RETRY_WAIT})
_RETRIED = frozenset({JobState.FAILED, JobState.CANCELLED})
_AGAIN = frozenset({CampaignState.WAITING, CampaignState.REFUSED})
_APPROVED = frozenset({CampaignState.CONVERTING, CampaignState.FINISHED})


class SteeringSide(CampaignsSide, DecisionsSide):
    """All of these raise NotFound, and StateConflict when the campaign is not where the move begins. `trail`:
    who is named in the audit log."""

    def pause_campaign(self, tenant_id: str, campaign_id: str, trail: Trail | None = None) -> CampaignRecord:
        """No queued job of it is claimed any more; running ones finish. Pausing twice is fine."""
        with self.db.write() as connection:
            row = _lock(connection, tenant_id, campaign_id)
            if row.state not in (Stored.OPEN.value, Stored.PAUSED.value):
                raise StateConflict(f"Only a campaign that goes on can be paused; it is '{row.state}'.")
            _set(connection, campaign_id, self.clock(), state=Stored.PAUSED.value)
            write_line(connection, self.clock(), trail, "campaign.paused", campaign_id)
            return load_campaign(connection, tenant_id, campaign_id)

    def resume_campaign(self, tenant_id: str, campaign_id: str, trail: Trail | None = None) -> CampaignRecord:
        """Go on, and ring for what waits. Resuming one that goes on is fine."""
        now = self.clock()
        with self.db.write() as connection:
            row = _lock(connection, tenant_id, campaign_id)
            if row.state not in (Stored.OPEN.value, Stored.PAUSED.value):
                raise StateConflict(f"Only a paused campaign can be resumed; it is '{row.state}'.")
            if row.state == Stored.PAUSED.value:
                _set(connection, campaign_id, now, state=Stored.OPEN.value)
                add_bells(connection, [job.id for job in _jobs(connection, campaign_id, _WAITING)], now)
            write_line(connection, now, trail, "campaign.resumed", campaign_id)
            return load_campaign(connection, tenant_id, campaign_id)

    def cancel_campaign(self, tenant_id: str, campaign_id: str, trail: Trail | None = None) -> CampaignRecord:
        """Cancel every job that has not ended; what is being published is left to end. Twice is fine."""
        now = self.clock()
        with self.db.write() as connection:
            _lock(connection, tenant_id, campaign_id)
            campaign = load_campaign(connection, tenant_id, campaign_id)
            if campaign.state is CampaignState.FINISHED:
                raise StateConflict("The campaign has finished: there is nothing left to cancel.")
            _set(connection, campaign_id, now, state=Stored.CANCELLED.value)
            alive = frozenset(JobState) - TERMINAL - {JobState.PUBLISHING}
            for job in _jobs(connection, campaign_id, alive):
                if not job.cancel_requested:
                    cancel_locked(connection, job, now)
            write_line(connection, now, trail, "campaign.cancelled", campaign_id)
            return load_campaign(connection, tenant_id, campaign_id)

    def retry_campaign(self, tenant_id: str, campaign_id: str, trail: Trail | None = None) -> CampaignRecord:
        """Queue failed and cancelled jobs again (never rejected ones: their verdict stands). A campaign that
        was refused, or waits, has its release looked at again instead."""
        now = self.clock()
        with self.db.write() as connection:
            row = _lock(connection, tenant_id, campaign_id)
            campaign = load_campaign(connection, tenant_id, campaign_id)
            if campaign.state in _AGAIN:
                self._look_again(connection, tenant_id, campaign)
                write_line(connection, now, trail, "campaign.retried", campaign_id)
                return campaign
            jobs = _jobs(connection, campaign_id, _RETRIED)
            if not jobs:
                raise StateConflict("The campaign has no failed or cancelled job to retry.")
            limits = limits_of(connection, tenant_id, self.limits)
            check_room(connection, tenant_id, limits, now, new=False, count=len(jobs))
            for job in jobs:
                retry_locked(connection, job.id, now, self.max_attempts)
            if row.state == Stored.CANCELLED.value:
                _set(connection, campaign_id, now, state=Stored.OPEN.value)
            write_line(connection, now, trail, "campaign.retried", campaign_id)
            return load_campaign(connection, tenant_id, campaign_id)

    def approve_campaign(
        self, tenant_id: str, campaign_id: str, trail: Trail | None = None
    ) -> CampaignRecord:
        """After a dry run: convert every adapter whose pre-check did not say incompatible. Twice is fine, and
        converts what has passed since then, as a pre-check may that is retried."""
        now = self.clock()
        with self.db.write() as connection:
            _lock(connection, tenant_id, campaign_id)
            campaign = load_campaign(connection, tenant_id, campaign_id)
            passed = _passed(connection, campaign_id)
            if campaign.approved_at is not None and (not passed or campaign.state not in _APPROVED):
                return campaign
            if campaign.approved_at is None and campaign.state is not CampaignState.AWAITING_APPROVAL:
                raise StateConflict(
                    f"Only a dry run whose pre-checks have ended can be approved; it is '{campaign.state}'.",
                    hint="Wait until GET /campaigns/{id} says 'awaiting_approval'.",
                )
            outputs = campaign.decision["outputs"]
            chosen = {place: outputs[str(place)] for place in passed}
            limits = limits_of(connection, tenant_id, self.limits)
            check_room(connection, tenant_id, limits, now, count=len(chosen))
            _set(connection, campaign_id, now, approved_at=campaign.approved_at or now)
            target = RepoRef(repo_id=campaign.repo_id, revision=campaign.sha)
            self._add_jobs(connection, tenant_id, campaign.spec, campaign_id, target, "convert", chosen)
            write_line(connection, now, trail, "campaign.approved", campaign_id)
            return load_campaign(connection, tenant_id, campaign_id)

    def _look_again(self, connection: Connection, tenant_id: str, campaign: CampaignRecord) -> None:
        if campaign.subscription_id is None:
            raise StateConflict("The subscription of this campaign was deleted.")
        told = {"subscription_id": campaign.subscription_id, "repo_id": campaign.repo_id}
        # No limit of the tenant counts these jobs, so one that waits is enough. The campaign's row is locked.
        waiting = select(Job.request).where(
            Job.tenant_id == tenant_id,
            Job.kind == "release",
            Job.target_repo == campaign.repo_id,
            Job.state.in_(sorted(state.value for state in _WAITING)),
        )
        if any(told.items() <= request.items() for request in connection.scalars(waiting)):
            return
        task = ReleaseTask.model_validate({**told, "sha": campaign.sha, "seen_by": "retry"})
        insert_jobs(connection, [self._look_at(tenant_id, task)])


def _lock(connection: Connection, tenant_id: str, campaign_id: str) -> Row[Any]:
    load_campaign(connection, tenant_id, campaign_id)
    query = select(Campaign.state).where(Campaign.id == campaign_id).with_for_update()
    return connection.execute(query).one()


def _set(connection: Connection, campaign_id: str, now: datetime, **values: Any) -> None:
    connection.execute(update(Campaign).where(Campaign.id == campaign_id).values(**values, updated_at=now))


def _jobs(connection: Connection, campaign_id: str, states: Collection[JobState]) -> list[JobRecord]:
    """The campaign's jobs in these states, their rows locked."""
    query = (
        select(Job.__table__)
        .join(CampaignJob, CampaignJob.job_id == Job.id)
        .where(CampaignJob.campaign_id == campaign_id, Job.state.in_(sorted(state.value for state in states)))
        .order_by(Job.id)
        .with_for_update(of=Job)
    )
    return [JobRecord.from_row(row) for row in connection.execute(query)]


def _passed(connection: Connection, campaign_id: str) -> list[int]:
    """Positions of the adapters whose pre-check succeeded with another verdict than incompatible, and that
    have no conversion yet."""
    converts = select(CampaignJob.position).where(
        CampaignJob.campaign_id == campaign_id, CampaignJob.stage == "convert"
    )
    query = (
        select(CampaignJob.position)
        .join(Job, Job.id == CampaignJob.job_id)
        .where(CampaignJob.campaign_id == campaign_id, CampaignJob.stage == "precheck")
        .where(Job.state == JobState.SUCCEEDED.value, Job.verdict != "incompatible")
        .where(CampaignJob.position.not_in(converts))
    )
    return sorted(connection.scalars(query))
