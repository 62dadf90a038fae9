"""Deleting rows whose retention period is over. Each purge is bounded, so that it never blocks the database
for long; the scheduler repeats it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, delete, or_, select
from sqlalchemy.orm import aliased

from rebase.schemas.callbacks import DeliveryState
from rebase.schemas.states import TERMINAL, CampaignDbState
from rebase.settings import Settings
from rebase.store.deliveries import delete_deliveries
from rebase.store.quota import DAY, delete_jobs
from rebase.store.repository import Repository
from rebase.store.tables.callbacks import CallbackDelivery
from rebase.store.tables.jobs import AnchorPool, Job, JobEvent
from rebase.store.tables.releases import Campaign, CampaignJob, Release
from rebase.store.tables.tenants import AuditEvent, CountedJob

BATCH = 200
_TERMINAL_STATES = [state.value for state in TERMINAL]


@dataclass(frozen=True, slots=True)
class RetentionPeriods:
    """Days to keep each kind of row; None: for ever."""

    jobs: float | None = None
    events: float | None = None
    audit: float | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> RetentionPeriods:
        """The deployment's retention settings."""
        return cls(settings.keep_jobs_days, settings.keep_events_days, settings.keep_audit_days)


@dataclass(frozen=True, slots=True)
class PurgeResult:
    """Rows deleted by one purge. `histories`: jobs whose events were checked; `counted_jobs`:
    deleted jobs that no longer count towards a limit."""

    jobs: int = 0
    histories: int = 0
    audit: int = 0
    deliveries: int = 0
    releases: int = 0
    counted_jobs: int = 0

    @property
    def has_more(self) -> bool:
        """Whether any batch was full, so that there may be more to delete."""
        return BATCH in (
            self.jobs,
            self.histories,
            self.audit,
            self.deliveries,
            self.releases,
            self.counted_jobs,
        )


class Retention:
    """Purges one database. Several may run at once: deleting a deleted row does nothing."""

    def __init__(self, store: Repository, periods: RetentionPeriods) -> None:
        self._store = store
        self._periods = periods
        self._last_job_id = ""  # this process has purged the histories of jobs up to this id

    def purge(self) -> PurgeResult:
        """Delete at most `BATCH` of each kind. Raises Busy."""
        now = self._store.clock()
        return PurgeResult(
            self._purge_jobs(now),
            self._purge_histories(now),
            self._purge_audit(now),
            self._purge_deliveries(now),
            self._purge_releases(now),
            self._purge_counted_jobs(now),
        )

    def _purge_jobs(self, now: datetime) -> int:
        """Delete ended jobs, oldest first. Kept are jobs of existing pools, whose data they hold; jobs of a
        campaign until it is over and all of its jobs are old; and jobs with a callback that is still
        pending."""
        if self._periods.jobs is None:
            return 0
        cutoff = now - timedelta(days=self._periods.jobs)
        has_pool = select(AnchorPool.id).where(AnchorPool.id == Job.id).exists()
        is_pending_callback = (
            CallbackDelivery.job_id == Job.id,
            CallbackDelivery.state == DeliveryState.PENDING.value,
        )
        has_pending_callback = select(CallbackDelivery.id).where(*is_pending_callback).exists()
        is_old = (Job.id < _get_lowest_id(cutoff), Job.state.in_(_TERMINAL_STATES), Job.finished_at < cutoff)
        query = (
            select(Job.id)
            .where(*is_old, ~has_pool, ~has_pending_callback, ~_in_active_campaign(cutoff))
            .order_by(Job.id)
            .limit(BATCH)
        )
        with self._store.db.write() as connection:
            ids = connection.scalars(query).all()
            if ids:
                delete_jobs(connection, ids, now)
        return len(ids)

    def _purge_histories(self, now: datetime) -> int:
        """Delete events of ended jobs, in the order of job ids. State transitions are kept as long as the
        job: a retry has to know whether it ever reached publishing."""
        if self._periods.events is None:
            return 0
        cutoff = now - timedelta(days=self._periods.events)
        query = (
            select(Job.id, Job.state, Job.finished_at)
            .where(Job.id > self._last_job_id, Job.id < _get_lowest_id(cutoff))
            .order_by(Job.id)
            .limit(BATCH)
        )
        with self._store.db.write() as connection:
            rows = connection.execute(query).all()
            ended = [row.id for row in rows if row.state in _TERMINAL_STATES and row.finished_at < cutoff]
            if ended:
                progress_events = (JobEvent.job_id.in_(ended), JobEvent.type != "state")
                connection.execute(delete(JobEvent).where(*progress_events))
        if rows:
            self._last_job_id = rows[-1].id
        return len(rows)

    def _purge_deliveries(self, now: datetime) -> int:
        """Delete settled callbacks with their attempts; they belong to a job's history."""
        if self._periods.events is None:
            return 0
        return delete_deliveries(self._store.db, now - timedelta(days=self._periods.events), BATCH)

    def _purge_releases(self, now: datetime) -> int:
        """Delete old releases. Their outcome is kept in campaigns, which also prevent a release that is
        reported again from being handled twice."""
        if self._periods.events is None:
            return 0
        cutoff = now - timedelta(days=self._periods.events)
        old = select(Release.id).where(Release.seen_at < cutoff).order_by(Release.id).limit(BATCH)
        with self._store.db.write() as connection:
            return connection.execute(delete(Release).where(Release.id.in_(old))).rowcount

    def _purge_audit(self, now: datetime) -> int:
        if self._periods.audit is None:
            return 0
        cutoff = now - timedelta(days=self._periods.audit)
        oldest = select(AuditEvent.id, AuditEvent.at).order_by(AuditEvent.id).limit(BATCH)
        with self._store.db.write() as connection:
            ids = [row.id for row in connection.execute(oldest) if row.at < cutoff]
            if ids:
                connection.execute(delete(AuditEvent).where(AuditEvent.id.in_(ids)))
        return len(ids)

    def _purge_counted_jobs(self, now: datetime) -> int:
        """Independent of the settings: no limit looks further back than a day."""
        old = (
            select(CountedJob.id)
            .where(CountedJob.id < _get_lowest_id(now - DAY))
            .order_by(CountedJob.id)
            .limit(BATCH)
        )
        with self._store.db.write() as connection:
            return connection.execute(delete(CountedJob).where(CountedJob.id.in_(old))).rowcount


def _in_active_campaign(cutoff: datetime) -> ColumnElement[bool]:
    """SQL condition for the enclosing statement: the job's campaign is paused, awaits approval, or has
    another job that has not ended before the cutoff."""
    other, link = aliased(Job), aliased(CampaignJob)
    has_active_job = (
        select(link.job_id)
        .join(other, other.id == link.job_id)
        .where(link.campaign_id == Campaign.id)
        .where(or_(other.state.not_in(_TERMINAL_STATES), other.finished_at >= cutoff))
        .correlate(Campaign)
        .exists()
    )
    awaits_approval = and_(
        Campaign.state == CampaignDbState.OPEN.value, Campaign.dry_run, Campaign.approved_at.is_(None)
    )
    return (
        select(CampaignJob.job_id)
        .join(Campaign, Campaign.id == CampaignJob.campaign_id)
        .where(CampaignJob.job_id == Job.id)
        .where(or_(Campaign.state == CampaignDbState.PAUSED.value, awaits_approval, has_active_job))
        .correlate(Job)
        .exists()
    )


def _get_lowest_id(at: datetime) -> str:
    """Job ids start with their creation time in milliseconds: no job with this id or a later one ended
    before `at`."""
    return f"{int(at.timestamp() * 1000):012x}"
