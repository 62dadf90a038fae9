"""Releases: recorded once, with a job for every subscription they match.

Webhooks and polls of the Hub end up here alike. A webhook's payload is trusted for one thing only: that the
repo is worth looking at. The job then reads the repo itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, and_, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from rebase.schemas.model_names import get_owner, subscription_matches
from rebase.schemas.states import TERMINAL, JobState
from rebase.schemas.subscriptions import MAIN_REF, ReconcileTask, ReleaseTask
from rebase.store.job_queue import lock_claimed_job
from rebase.store.job_submission import build_job_record, insert_jobs
from rebase.store.jobs import retry_locked
from rebase.store.records import Claim, JobRecord, RecordResult, ReleaseEvent, SubscriptionRecord
from rebase.store.repository import Repository, new_id
from rebase.store.subscriptions import find_subscriptions_to_owner
from rebase.store.tables.jobs import Job
from rebase.store.tables.releases import Release, ReleaseMatch, Subscription

# The Hub may be unavailable just after a release: 10 s, doubling, spans about twenty minutes.
RELEASE_JOB_ATTEMPTS = 8
POLL_BATCH = 100


class ReleaseRepository(Repository):
    """Releases reported by webhooks or found by polling the Hub."""

    def record(self, event: ReleaseEvent, tenant_id: str | None = None) -> RecordResult:
        """Record a release and queue a job for every matching subscription (of one tenant, or of all).

        One transaction. Repeating it, for example with a poll after a webhook, changes nothing.
        """
        with self.db.read() as connection:
            if is_own_push(connection, event):
                return "own_push"
            if not _find_matching_subscriptions(connection, event, tenant_id):
                return "no_subscription"
        now = self.clock()
        with self.db.write() as connection:
            release_id = _insert_release(connection, event, now)
            if release_id is None:
                return "duplicate"
            matching = _find_matching_subscriptions(connection, event, tenant_id, lock=True)
            new_matches = _insert_matches(connection, release_id, matching)
            release_fields = {"repo_id": event.repo_id, "sha": event.sha, "seen_by": event.seen_by}
            records = [
                build_release_job(
                    self,
                    subscription.tenant_id,
                    ReleaseTask.model_validate({"subscription_id": subscription.id, **release_fields}),
                )
                for subscription in matching
                if subscription.id in new_matches
            ]
            if records:
                insert_jobs(connection, records)
        return "recorded" if records else "duplicate"

    def count(self) -> dict[str, int]:
        """Number of releases reported by webhooks and found by polls."""
        with self.db.read() as connection:
            rows = connection.execute(select(Release.seen_by, func.count()).group_by(Release.seen_by))
            counts: dict[str, int] = {row[0]: row[1] for row in rows}
        return {source: counts.get(source, 0) for source in ("webhook", "poll")}

    def enqueue_polls(self, every_s: float) -> int:
        """Queue a poll for each tenant and owner whose last one is `every_s` old; returns how many.

        Several schedulers may share the work: a subscription's row is taken by one UPDATE. Ended polls are
        deleted, so that hourly polls leave one row instead of thousands.
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
                build_job_record(self, tenant, "reconcile", ReconcileTask(owner=owner))
                for tenant, owner in sorted(due_owners)
                if not _has_open_poll(connection, tenant, owner)
            ]
            if records:
                insert_jobs(connection, records)
        return len(records)

    def list_known(self, subscription_ids: Sequence[str]) -> set[tuple[str, str, str]]:
        """(subscription, repo, commit) of the releases already recorded for these subscriptions."""
        query = (
            select(ReleaseMatch.subscription_id, Release.repo_id, Release.sha)
            .join(Release, Release.id == ReleaseMatch.release_id)
            .where(ReleaseMatch.subscription_id.in_(subscription_ids), Release.ref == MAIN_REF)
        )
        with self.db.read() as connection:
            return {(row[0], row[1], row[2]) for row in connection.execute(query)}

    def mark_polled(self, claim: Claim, owner: str, subscription_ids: Sequence[str], at: datetime) -> None:
        """Record that everything this owner changed before `at` has been seen for these subscriptions.
        Releases whose job failed because the Hub was unavailable are tried again. Raises LeaseLost."""
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


def build_release_job(repository: Repository, tenant_id: str, task: ReleaseTask) -> JobRecord:
    """A new job that checks a release for a subscription; the caller inserts it."""
    record = build_job_record(repository, tenant_id, "release", task)
    return replace(record, attempt_limit=max(RELEASE_JOB_ATTEMPTS, record.attempt_limit))


def is_own_push(connection: Connection, event: ReleaseEvent) -> bool:
    """Whether one of our jobs made this commit (or repo) or is about to. The commit is on the Hub, and thus
    in a webhook, before the job's row says so."""
    was_published = Job.state == JobState.SUCCEEDED.value
    if not event.new_repo:
        was_published = and_(was_published, Job.result["output"]["commit"].as_string() == event.sha)
    by_our_job = (
        Job.output_repo == event.repo_id,
        or_(was_published, Job.state == JobState.PUBLISHING.value),
    )
    return connection.scalar(select(Job.id).where(*by_our_job).limit(1)) is not None


def _find_matching_subscriptions(
    connection: Connection, event: ReleaseEvent, tenant_id: str | None, *, lock: bool = False
) -> list[SubscriptionRecord]:
    subscriptions = find_subscriptions_to_owner(connection, get_owner(event.repo_id), tenant_id, lock=lock)
    return [
        subscription
        for subscription in subscriptions
        if subscription_matches(subscription.request, event.repo_id)
        and (event.created_at is None or event.created_at >= subscription.since)
    ]


def _insert_release(connection: Connection, event: ReleaseEvent, now: datetime) -> str | None:
    """The release's id, new or not; None for a delivery already recorded under another name of its repo."""
    values = {
        "id": new_id(),
        "repo_id": event.repo_id,
        "ref": event.ref,
        "sha": event.sha,
        "webhook_id": event.webhook_id,
        "hub_repo_id": event.hub_repo_id,
        "seen_by": event.seen_by,
        "seen_at": now,
    }
    connection.execute(_build_dialect_insert(connection, Release).values(values).on_conflict_do_nothing())
    same_commit = (Release.repo_id == event.repo_id, Release.ref == event.ref, Release.sha == event.sha)
    release_id: str | None = connection.scalar(select(Release.id).where(*same_commit))
    return release_id


def _insert_matches(connection: Connection, release_id: str, matching: list[SubscriptionRecord]) -> set[str]:
    """Record which subscriptions match the release; returns the ids of those for which it is new."""
    rows = [{"release_id": release_id, "subscription_id": subscription.id} for subscription in matching]
    if not rows:
        return set()
    statement = _build_dialect_insert(connection, ReleaseMatch).values(rows).on_conflict_do_nothing()
    return set(connection.scalars(statement.returning(ReleaseMatch.subscription_id)))


def _build_dialect_insert(connection: Connection, table: Any) -> Any:
    """An INSERT with ON CONFLICT DO NOTHING; each database has its own dialect of it."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


def _has_open_poll(connection: Connection, tenant: str, owner: str) -> bool:
    """Whether such a poll is queued or running. Ended ones are deleted."""
    same_owner = (Job.tenant_id == tenant, Job.kind == "reconcile", Job.target_repo == owner)
    is_ended = Job.state.in_(sorted(state.value for state in TERMINAL))
    connection.execute(delete(Job).where(*same_owner, is_ended))
    return connection.scalar(select(Job.id).where(*same_owner).limit(1)) is not None
