"""The states of jobs, anchor pools and campaigns, and the transitions between them.

    queued ──claim──▶ running ──▶ publishing ──▶ succeeded
      ▲  ▲               │            │
      │  └─ retry_wait ◀─┴────────────┤   (retryable failure, or the worker's lease expired)
      │                  │            ├──▶ failed
      │                  ├──▶ rejected │   (pre-check: incompatible)
      │                  └──▶ cancelled┘
      └── retry (on request) ── failed | rejected | cancelled

The database is the source of truth. Every transition is one guarded UPDATE: `WHERE id AND state IN
(sources)`, and for a worker's transitions also `AND attempt AND lease_owner`. Zero rows updated means that
another process has changed the job and the writer must stop working on it. Cancellation is a flag
(`cancel_requested`) that the worker reads with its heartbeat. Jobs without a worker are cancelled at once,
unless they ever reached publishing: their commit may exist, so a worker checks first. A job whose lease has
expired goes back to `queued` until its attempts are used up, then to `failed` with code `worker_lost`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal


class JobState(StrEnum):
    """The state of a job. There are no automatic transitions out of `TERMINAL` states."""

    QUEUED = "queued"
    RUNNING = "running"
    PUBLISHING = "publishing"
    RETRY_WAIT = "retry_wait"
    SUCCEEDED = "succeeded"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Phase(StrEnum):
    """What a running job is doing."""

    RESOLVING = "resolving"
    READING = "reading"
    PRECHECKING = "prechecking"
    FACTORIZING = "factorizing"
    COLLECTING = "collecting"
    TRAINING = "training"
    TRANSFERRING = "transferring"
    VERIFYING = "verifying"
    EVALUATING = "evaluating"


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.REJECTED, JobState.FAILED, JobState.CANCELLED})
LEASED = frozenset({JobState.RUNNING, JobState.PUBLISHING})

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.FAILED}),
    JobState.RUNNING: frozenset(
        {
            JobState.PUBLISHING,
            JobState.SUCCEEDED,  # pre-checks and anchor pools publish nothing and end here
            JobState.REJECTED,
            JobState.FAILED,
            JobState.CANCELLED,
            JobState.RETRY_WAIT,
            JobState.QUEUED,
        }
    ),
    JobState.PUBLISHING: frozenset(
        {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.RETRY_WAIT, JobState.QUEUED}
    ),
    JobState.RETRY_WAIT: frozenset({JobState.QUEUED, JobState.RUNNING, JobState.CANCELLED, JobState.FAILED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.REJECTED: frozenset({JobState.QUEUED}),
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset({JobState.QUEUED}),
}


class PoolState(StrEnum):
    """The state of an anchor pool. It is not stored but derived from the job that registers the pool."""

    VALIDATING = "validating"
    READY = "ready"
    INVALID = "invalid"


def derive_pool_state(job_state: JobState) -> PoolState:
    """A pool is ready when its job has succeeded; other ended jobs can be retried."""
    if job_state not in TERMINAL:
        return PoolState.VALIDATING
    return PoolState.READY if job_state is JobState.SUCCEEDED else PoolState.INVALID


def get_source_states(state: JobState) -> frozenset[JobState]:
    """The states from which a job may change to `state`."""
    return frozenset(source for source, targets in TRANSITIONS.items() if state in targets)


# The states of a campaign.
#
#     waiting ──▶ open ──▶ paused ──▶ open
#        │         │ ▲        │
#        │         │ └ retry ─┤
#        ▼         ▼          ▼
#     refused   cancelled ◀───┘
#
# `waiting` (the release has no weights yet) and `refused` (a guard was violated) are evaluated again with the
# next push to the same repo. Only these five are stored; the displayed state of an open campaign is derived
# from its jobs.


class CampaignDbState(StrEnum):
    """The stored state."""

    WAITING = "waiting"
    REFUSED = "refused"
    OPEN = "open"
    PAUSED = "paused"
    CANCELLED = "cancelled"


class CampaignState(StrEnum):
    """The displayed state."""

    WAITING = "waiting"
    REFUSED = "refused"
    CHECKING = "checking"  # the pre-checks of a dry run
    AWAITING_APPROVAL = "awaiting_approval"
    CONVERTING = "converting"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    FINISHED = "finished"


IDLE_CAMPAIGN_STATES = frozenset(
    {
        CampaignState.REFUSED,
        CampaignState.AWAITING_APPROVAL,
        CampaignState.PAUSED,
        CampaignState.CANCELLED,
        CampaignState.FINISHED,
    }
)


ConversionKind = Literal["convert", "precheck"]
Kind = Literal["convert", "precheck", "pool", "release", "reconcile"]


# Subscriptions, releases and campaigns as the store hands them out.
