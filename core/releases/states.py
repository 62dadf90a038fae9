"""Where a campaign is.

    waiting ──▶ open ──▶ paused ──▶ open
       │         │ ▲        │
       │         │ └ retry ─┤
       ▼         ▼          ▼
    refused   cancelled ◀───┘

`waiting` (the release holds no weights yet) and `refused` (guards spoke against it) are looked at again with
the next push to the same repo. Only these five are stored. What an open campaign shows follows from its jobs.
"""

from __future__ import annotations

from enum import StrEnum


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
