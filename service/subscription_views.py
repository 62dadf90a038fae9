"""What the API shows of a subscription. As in `service.views`, nothing is validated again."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from rebase.store.records import SubscriptionPage, SubscriptionRecord


class SubscriptionOut(BaseModel):
    """A subscription; `request` as it was sent, with defaults filled in."""

    id: str
    name: str | None
    bases: str | None
    successors_of: str | None
    adapter_count: int
    paused: bool
    since: datetime = Field(description="Repos created before are not released.")
    looked_at: datetime = Field(description="Changes on the Hub before this were looked at.")
    created_at: datetime
    request: dict[str, Any]
    links: dict[str, str]

    @classmethod
    def from_record(cls, record: SubscriptionRecord) -> SubscriptionOut:
        """The view of a record."""
        request = record.request
        return cls.model_construct(
            id=record.id,
            name=request.get("name"),
            bases=request.get("bases"),
            successors_of=request.get("successors_of"),
            adapter_count=len(request["adapters"]),
            paused=record.paused,
            since=record.since,
            looked_at=record.looked_at,
            created_at=record.created_at,
            request=request,
            links={
                "self": f"/subscriptions/{record.id}",
                "campaigns": f"/campaigns?subscription={record.id}",
            },
        )


class SubscriptionListOut(BaseModel):
    """One page, newest first. Pass `next_cursor` as `cursor` for the next one; null on the last."""

    subscriptions: list[SubscriptionOut]
    next_cursor: str | None

    @classmethod
    def from_page(cls, page: SubscriptionPage) -> SubscriptionListOut:
        """The view of a page."""
        subscriptions = [SubscriptionOut.from_record(one) for one in page.subscriptions]
        return cls.model_construct(subscriptions=subscriptions, next_cursor=page.next_cursor)
