"""Looking for releases that no webhook told: who is due for a look, and what a look has covered."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, select, update

from core.jobs.client_side import retry_locked
from core.jobs.insert import insert_jobs
from core.jobs.records import Claim
from core.jobs.submit import JobSubmission
from core.jobs.worker_side import lock_claimed_job
from core.releases.names import get_owner
from core.releases.tasks import MAIN_REF, ReconcileTask
from core.states import TERMINAL, JobState
from core.tables.jobs import Job
from core.tables.releases import Release, ReleaseMatch, Subscription

POLL_BATCH = 100


class ReleasePolling(JobSubmission):
    """For the keeper and for workers."""

    def enqueue_polls(self, every_s: float) -> int:
        """Queue a look for each tenant and owner whose last one is `every_s` old; how many were queued.

        Several keepers share the work: a subscription's row is taken by one UPDATE. Looks that have ended go,
        so that an hourly one leaves one row and not thousands.
        """
        now = self.clock()
        with self.db.write() as connection:
            due = (
                select(Subscription.id)
                .where(
                    Subscription.asked_at <= now - timedelta(seconds=every_s), Subscription.paused.is_(False)
                )
                .order_by(Subscription.id)
                .limit(POLL_BATCH)
                .with_for_update(skip_locked=True)
            )
            claimed = connection.execute(
                update(Subscription)
                .where(Subscription.id.in_(due.scalar_subquery()))
                .values(asked_at=now)
                .returning(Subscription.tenant_id, Subscription.owner)
            )
            due_owners = {(row.tenant_id, row.owner) for row in claimed}
            records = [
                self._build_record(tenant, "reconcile", ReconcileTask(owner=owner))
                for tenant, owner in sorted(due_owners)
                if not _has_open_poll(connection, tenant, owner)
            ]
            if records:
                insert_jobs(connection, records)
        return len(records)

    def list_known_releases(self, subscription_ids: Sequence[str]) -> set[tuple[str, str, str]]:
        """(subscription, repo, commit) of what these were told of before."""
        query = (
            select(ReleaseMatch.subscription_id, Release.repo_id, Release.sha)
            .join(Release, Release.id == ReleaseMatch.release_id)
            .where(ReleaseMatch.subscription_id.in_(subscription_ids), Release.ref == MAIN_REF)
        )
        with self.db.read() as connection:
            return {(row[0], row[1], row[2]) for row in connection.execute(query)}

    def mark_polled(self, claim: Claim, owner: str, subscription_ids: Sequence[str], at: datetime) -> None:
        """Everything of this owner that changed before `at` was seen for these. Releases whose job failed
        (the Hub was away for too long) are tried again. Raises LeaseLost."""
        now = self.clock()
        failed = select(Job.id, Job.target_repo).where(
            Job.tenant_id == claim.tenant_id, Job.kind == "release", Job.state == JobState.FAILED.value
        )
        with self.db.write() as connection:
            lock_claimed_job(connection, claim, {JobState.RUNNING})
            connection.execute(
                update(Subscription).where(Subscription.id.in_(subscription_ids)).values(looked_at=at)
            )
            for row in connection.execute(failed.order_by(Job.id).with_for_update()).all():
                if get_owner(row.target_repo) == owner:
                    retry_locked(connection, row.id, now, self.max_attempts)


def _has_open_poll(connection: Connection, tenant: str, owner: str) -> bool:
    """Does such a look wait or run? Those that have ended are deleted."""
    same_owner = (Job.tenant_id == tenant, Job.kind == "reconcile", Job.target_repo == owner)
    is_ended = Job.state.in_(sorted(state.value for state in TERMINAL))
    connection.execute(delete(Job).where(*same_owner, is_ended))
    return connection.scalar(select(Job.id).where(*same_owner).limit(1)) is not None
