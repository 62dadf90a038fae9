"""What is deleted because its time is over. A sweep does a bounded amount, so that it never holds the
database up for long; the keeper calls it again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, delete, or_, select
from sqlalchemy.orm import aliased

from core.callbacks.spec import DeliveryState
from core.callbacks.store import forget_deliveries
from core.jobs.base import StoreBase
from core.jobs.room import DAY, forget_jobs
from core.releases.states import Stored
from core.settings import Settings
from core.states import TERMINAL
from core.tables.callbacks import CallbackDelivery
from core.tables.jobs import AnchorPool, Job, JobEvent
from core.tables.releases import Campaign, CampaignJob, Release
from core.tables.tenants import AuditLine, SpentJob

BATCH = 200
_ENDED = [state.value for state in TERMINAL]


@dataclass(frozen=True, slots=True)
class Keep:
    """Days; None: for ever."""

    jobs: float | None = None
    events: float | None = None
    audit: float | None = None

    @classmethod
    def of(cls, settings: Settings) -> Keep:
        """What the deployment asks for."""
        return cls(settings.keep_jobs_days, settings.keep_events_days, settings.keep_audit_days)


@dataclass(frozen=True, slots=True)
class Purged:
    """Rows that one sweep deleted; of `histories`, jobs that were looked through; of `spent`, deleted jobs
    that count no longer."""

    jobs: int = 0
    histories: int = 0
    audit: int = 0
    deliveries: int = 0
    releases: int = 0
    spent: int = 0

    @property
    def more(self) -> bool:
        """Was there as much as fits into a sweep, so that there may be more?"""
        return BATCH in (
            self.jobs,
            self.histories,
            self.audit,
            self.deliveries,
            self.releases,
            self.spent,
        )


class Retention:
    """Sweeps one database. Several may run at once: deleting what is gone already does nothing."""

    def __init__(self, store: StoreBase, keep: Keep) -> None:
        self._store = store
        self._keep = keep
        self._seen = ""  # histories of jobs up to this id were looked through by this process

    def sweep(self) -> Purged:
        """Delete at most `BATCH` of each kind. Raises Busy."""
        now = self._store.clock()
        return Purged(
            self._jobs(now),
            self._histories(now),
            self._audit(now),
            self._deliveries(now),
            self._releases(now),
            self._spent(now),
        )

    def _jobs(self, now: datetime) -> int:
        """Ended jobs, oldest first. A pool lives in its job, so jobs of pools that still stand are kept. A
        campaign is told of by its jobs, so that they are kept until it is over and all of them are old. A
        callback that is still to be delivered keeps its job."""
        if self._keep.jobs is None:
            return 0
        before = now - timedelta(days=self._keep.jobs)
        pool = select(AnchorPool.id).where(AnchorPool.id == Job.id).exists()
        told = CallbackDelivery.job_id == Job.id, CallbackDelivery.state == DeliveryState.PENDING.value
        pending = select(CallbackDelivery.id).where(*told).exists()
        old = (Job.id < _first_id(before), Job.state.in_(_ENDED), Job.finished_at < before)
        query = (
            select(Job.id)
            .where(*old, ~pool, ~pending, ~_of_living_campaign(before))
            .order_by(Job.id)
            .limit(BATCH)
        )
        with self._store.db.write() as connection:
            ids = connection.scalars(query).all()
            if ids:
                forget_jobs(connection, ids, now)
        return len(ids)

    def _histories(self, now: datetime) -> int:
        """Events of ended jobs, job by job in the order of their ids. State moves stay as long as the job: a
        retry has to know whether it once came to publishing."""
        if self._keep.events is None:
            return 0
        before = now - timedelta(days=self._keep.events)
        query = (
            select(Job.id, Job.state, Job.finished_at)
            .where(Job.id > self._seen, Job.id < _first_id(before))
            .order_by(Job.id)
            .limit(BATCH)
        )
        with self._store.db.write() as connection:
            rows = connection.execute(query).all()
            ended = [row.id for row in rows if row.state in _ENDED and row.finished_at < before]
            if ended:
                told = (JobEvent.job_id.in_(ended), JobEvent.type != "state")
                connection.execute(delete(JobEvent).where(*told))
        if rows:
            self._seen = rows[-1].id
        return len(rows)

    def _deliveries(self, now: datetime) -> int:
        """Callbacks that came to an end, with their logs: part of a job's history."""
        if self._keep.events is None:
            return 0
        return forget_deliveries(self._store.db, now - timedelta(days=self._keep.events), BATCH)

    def _releases(self, now: datetime) -> int:
        """Releases that were seen long ago. What became of them stands in campaigns, which also keep one that
        is told of again from being handled twice."""
        if self._keep.events is None:
            return 0
        before = now - timedelta(days=self._keep.events)
        old = select(Release.id).where(Release.seen_at < before).order_by(Release.id).limit(BATCH)
        with self._store.db.write() as connection:
            return connection.execute(delete(Release).where(Release.id.in_(old))).rowcount

    def _audit(self, now: datetime) -> int:
        if self._keep.audit is None:
            return 0
        before = now - timedelta(days=self._keep.audit)
        oldest = select(AuditLine.id, AuditLine.at).order_by(AuditLine.id).limit(BATCH)
        with self._store.db.write() as connection:
            ids = [row.id for row in connection.execute(oldest) if row.at < before]
            if ids:
                connection.execute(delete(AuditLine).where(AuditLine.id.in_(ids)))
        return len(ids)

    def _spent(self, now: datetime) -> int:
        """Whatever the settings say: no limit looks further back than a day."""
        old = select(SpentJob.id).where(SpentJob.id < _first_id(now - DAY)).order_by(SpentJob.id).limit(BATCH)
        with self._store.db.write() as connection:
            return connection.execute(delete(SpentJob).where(SpentJob.id.in_(old))).rowcount


def _of_living_campaign(before: datetime) -> ColumnElement[bool]:
    """Does the job of the statement around it belong to a campaign that is paused, that waits for approval,
    or of which another job has not ended, or ended since then?"""
    other, link = aliased(Job), aliased(CampaignJob)
    lately = (
        select(link.job_id)
        .join(other, other.id == link.job_id)
        .where(link.campaign_id == Campaign.id)
        .where(or_(other.state.not_in(_ENDED), other.finished_at >= before))
        .correlate(Campaign)
        .exists()
    )
    unapproved = and_(Campaign.state == Stored.OPEN.value, Campaign.dry_run, Campaign.approved_at.is_(None))
    return (
        select(CampaignJob.job_id)
        .join(Campaign, Campaign.id == CampaignJob.campaign_id)
        .where(CampaignJob.job_id == Job.id)
        .where(or_(Campaign.state == Stored.PAUSED.value, unapproved, lately))
        .correlate(Job)
        .exists()
    )


def _first_id(at: datetime) -> str:
    """Ids of jobs begin with the milliseconds of their making: nothing at or behind this one ended before."""
    return f"{int(at.timestamp() * 1000):012x}"
