"""The job store: every read and every transition of a job, as guarded SQL; see `rebase.schemas.states`."""

from __future__ import annotations

from rebase.store.anchor_pools import AnchorPoolRepository
from rebase.store.campaign_control import CampaignControl
from rebase.store.job_claims import ClaimedJobs
from rebase.store.jobs import JobRepository
from rebase.store.outbox import OutboxRepository
from rebase.store.releases import ReleasePolling
from rebase.store.subscriptions import SubscriptionRepository


class JobStore(
    AnchorPoolRepository,
    SubscriptionRepository,
    CampaignControl,
    ReleasePolling,
    JobRepository,
    ClaimedJobs,
    OutboxRepository,
):
    """All of it: the service submits and uses pools, subscriptions, campaigns and jobs; workers settle and
    decide; the keeper relays, sweeps and asks for looks at the Hub."""
