"""All of the SQL behind jobs, pools, subscriptions, releases and campaigns: one repository per aggregate.

For the states of jobs and campaigns, see `rebase.schemas.states`.
"""

from __future__ import annotations

from datetime import datetime
from typing import TypeVar

from rebase.store.anchor_pools import AnchorPoolRepository
from rebase.store.campaign_control import CampaignControl
from rebase.store.campaigns import CampaignRepository
from rebase.store.database import Database
from rebase.store.job_queue import JobQueue
from rebase.store.job_submission import SubmissionRepository
from rebase.store.jobs import JobRepository
from rebase.store.limits import NO_LIMITS, Limits
from rebase.store.outbox import OutboxRepository
from rebase.store.release_decisions import ReleaseDecisions
from rebase.store.releases import ReleaseRepository
from rebase.store.repository import Clock, Repository, utcnow
from rebase.store.subscriptions import SubscriptionRepository

R = TypeVar("R", bound=Repository)


class Store(Repository):
    """The repositories over one database and one clock.

    `submissions`, `jobs`: what clients do; `queue`: a worker's operations on a job it has claimed;
    `outbox`: notifications and expired leases, for the scheduler; `releases`, `decisions`: releases from
    webhooks, polls and release jobs; `campaigns`, `campaign_control`: an owner's view and control of them.
    """

    def __init__(
        self, db: Database, clock: Clock = utcnow, *, max_attempts: int = 3, limits: Limits = NO_LIMITS
    ) -> None:
        super().__init__(db, clock, max_attempts=max_attempts, limits=limits)

        def make(repository: type[R]) -> R:
            return repository(db, self._now, max_attempts=max_attempts, limits=limits)

        self.submissions = make(SubmissionRepository)
        self.jobs = make(JobRepository)
        self.queue = make(JobQueue)
        self.outbox = make(OutboxRepository)
        self.pools = make(AnchorPoolRepository)
        self.subscriptions = make(SubscriptionRepository)
        self.releases = make(ReleaseRepository)
        self.decisions = make(ReleaseDecisions)
        self.campaigns = make(CampaignRepository)
        self.campaign_control = make(CampaignControl)

    def _now(self) -> datetime:
        """One clock for all: setting `store.clock` sets that of every repository."""
        return self.clock()
