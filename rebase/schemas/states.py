"""Job states and the moves between them.

    queued ──claim──▶ running ──▶ publishing ──▶ succeeded
      ▲  ▲               │            │
      │  └─ retry_wait ◀─┴────────────┤   (retryable failure, or the worker's lease ran out)
      │                  │            ├──▶ failed
      │                  ├──▶ rejected │   (pre-check: incompatible)
      │                  └──▶ cancelled┘
      └── retry (a person asks) ── failed | rejected | cancelled

SQL is the truth. Every move is one guarded UPDATE: `WHERE id AND state IN (sources)`, and for moves made by
a worker also `AND attempt AND lease_owner`; zero rows updated means the job has moved on and the writer
must drop what it holds. Cancellation is a flag (`cancel_requested`) that the worker reads with its heartbeat;
jobs that nobody runs are cancelled at once, unless they once came to publishing: their commit may stand, so a
worker looks first. A job without a worker (lease past its end) goes back to `queued` until its attempts are
spent, then to `failed` with code `worker_lost`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal


class JobState(StrEnum):
    """Where a job is. `TERMINAL` ones never move by themselves."""

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
            JobState.SUCCEEDED,  # pre-checks and anchor pools end here, with nothing to publish
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
    """Where an anchor pool is. Nobody stores it: it follows from the job that registers the pool."""

    VALIDATING = "validating"
    READY = "ready"
    INVALID = "invalid"


def derive_pool_state(job_state: JobState) -> PoolState:
    """A pool is ready when its job has succeeded; a job that ended otherwise can be retried."""
    if job_state not in TERMINAL:
        return PoolState.VALIDATING
    return PoolState.READY if job_state is JobState.SUCCEEDED else PoolState.INVALID


def get_source_states(state: JobState) -> frozenset[JobState]:
    """The states from which a job may move to `state`."""
    return frozenset(source for source, targets in TRANSITIONS.items() if state in targets)


# Where a campaign is.
#
#     waiting ──▶ open ──▶ paused ──▶ open
#        │         │ ▲        │
#        │         │ └ retry ─┤
#        ▼         ▼          ▼
#     refused   cancelled ◀───┘
#
# `waiting` (the release holds no weights yet) and `refused` (a guard was violated) are evaluated again with
# the next push to the same repo. Only these five are stored; what an open campaign shows follows from its
# jobs.


class CampaignDbState(StrEnum):
    """What the table holds."""

    WAITING = "waiting"
    REFUSED = "refused"
    OPEN = "open"
    PAUSED = "paused"
    CANCELLED = "cancelled"


class CampaignState(StrEnum):
    """What a reader sees."""

    WAITING = "waiting"
    REFUSED = "refused"
    CHECKING = "checking"  # a dry run's pre-checks
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
