"""Releases as they are seen: recorded once, and a job for every subscription that means them.

A webhook and a look at the Hub come here alike. What a delivery says is trusted for one thing: that looking
at the repo is worth it. The job looks.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from core.ids import new_id
from core.jobs.insert import insert_jobs
from core.jobs.records import JobRecord
from core.jobs.release_records import Seen, SeenAs, SubscriptionRecord
from core.jobs.submit import Submitting
from core.jobs.subscriptions_side import subscriptions_to
from core.releases.names import is_meant, owner_of
from core.releases.tasks import ReleaseTask
from core.states import JobState
from core.tables.jobs import Job
from core.tables.releases import Release, ReleaseMatch

# The Hub may be away for a while just when it has news: 10 s, doubling, gives it about twenty minutes.
ATTEMPTS = 8


class ReleasesSide(Submitting):
    """`see`, and how many releases were seen."""

    def see(self, seen: Seen, tenant_id: str | None = None) -> SeenAs:
        """Record a release and queue a job per subscription (of one tenant, or of all) that means it.

        One transaction; one delivered again, or found by a look too, changes nothing.
        """
        with self.db.read() as connection:
            if is_own_push(connection, seen):
                return "own_push"
            if not _meaning(connection, seen, tenant_id):
                return "no_subscription"
        now = self.clock()
        with self.db.write() as connection:
            release_id = _record(connection, seen, now)
            if release_id is None:
                return "duplicate"
            meaning = _meaning(connection, seen, tenant_id, keep=True)
            new = _match(connection, release_id, meaning)
            told = {"repo_id": seen.repo_id, "sha": seen.sha, "seen_by": seen.seen_by}
            records = [
                self._look_at(one.tenant_id, ReleaseTask.model_validate({"subscription_id": one.id, **told}))
                for one in meaning
                if one.id in new
            ]
            if records:
                insert_jobs(connection, records)
        return "recorded" if records else "duplicate"

    def _look_at(self, tenant_id: str, task: ReleaseTask) -> JobRecord:
        """A new job that looks at a release for a subscription; the caller inserts it."""
        record = self._new_record(tenant_id, "release", task)
        return replace(record, attempt_limit=max(ATTEMPTS, record.attempt_limit))

    def releases_seen(self) -> dict[str, int]:
        """How many releases webhooks told, and how many looks found."""
        with self.db.read() as connection:
            rows = connection.execute(select(Release.seen_by, func.count()).group_by(Release.seen_by))
            found: dict[str, int] = {row[0]: row[1] for row in rows}
        return {by: found.get(by, 0) for by in ("webhook", "poll")}


def is_own_push(connection: Connection, seen: Seen) -> bool:
    """Did a job of ours make this commit (or this repo), or is one about to? The commit is on the Hub, and so
    in a webhook, before the job's row says so."""
    made = Job.state == JobState.SUCCEEDED.value
    if not seen.new_repo:
        made = and_(made, Job.result["output"]["commit"].as_string() == seen.sha)
    ours = (Job.output_repo == seen.repo_id, or_(made, Job.state == JobState.PUBLISHING.value))
    return connection.scalar(select(Job.id).where(*ours).limit(1)) is not None


def _meaning(
    connection: Connection, seen: Seen, tenant_id: str | None, *, keep: bool = False
) -> list[SubscriptionRecord]:
    found = subscriptions_to(connection, owner_of(seen.repo_id), tenant_id, keep=keep)
    return [
        one
        for one in found
        if is_meant(one.request, seen.repo_id) and (seen.created_at is None or seen.created_at >= one.since)
    ]


def _record(connection: Connection, seen: Seen, now: datetime) -> str | None:
    """The release's id, new or not; None for a delivery that is known under another name of its repo."""
    values = {
        "id": new_id(),
        "repo_id": seen.repo_id,
        "ref": seen.ref,
        "sha": seen.sha,
        "webhook_id": seen.webhook_id,
        "hub_repo_id": seen.hub_repo_id,
        "seen_by": seen.seen_by,
        "seen_at": now,
    }
    connection.execute(_insert(connection, Release).values(values).on_conflict_do_nothing())
    here = (Release.repo_id == seen.repo_id, Release.ref == seen.ref, Release.sha == seen.sha)
    found: str | None = connection.scalar(select(Release.id).where(*here))
    return found


def _match(connection: Connection, release_id: str, meaning: list[SubscriptionRecord]) -> set[str]:
    """Note who means the release; the ids of those for whom that is news."""
    rows = [{"release_id": release_id, "subscription_id": one.id} for one in meaning]
    if not rows:
        return set()
    statement = _insert(connection, ReleaseMatch).values(rows).on_conflict_do_nothing()
    return set(connection.scalars(statement.returning(ReleaseMatch.subscription_id)))


def _insert(connection: Connection, table: Any) -> Any:
    """INSERT that can pass over what is there: both databases have it, in dialects of their own."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
