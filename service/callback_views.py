"""What the API shows of deliveries and signing secrets. As in `service.views`, nothing is validated again."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from rebase.schemas.callbacks import CallbackEvent, DeliveryState
from rebase.store.deliveries import DeliveryPage, DeliveryRecord
from rebase.store.signing_secrets import SecretRecord


class AttemptView(BaseModel):
    """One attempt. Without `reason` it was accepted; with a `reason` and no `status` nobody answered."""

    number: int
    at: datetime
    status: int | None
    reason: str | None
    detail: str | None
    duration_ms: int | None


class DeliveryView(BaseModel):
    """One message to one receiver; `id` is its `webhook-id`, `payload` what is sent, `log` every attempt."""

    id: str
    job_id: str
    event: CallbackEvent
    url: str
    state: DeliveryState
    attempts: int
    next_attempt_at: datetime | None = Field(description="While it is pending.")
    created_at: datetime
    updated_at: datetime
    payload: dict[str, Any]
    log: list[AttemptView]
    links: dict[str, str]

    @classmethod
    def of(cls, delivery: DeliveryRecord) -> DeliveryView:
        """The view of a record."""
        return cls.model_construct(
            id=delivery.id,
            job_id=delivery.job_id,
            event=CallbackEvent(delivery.event),
            url=delivery.url,
            state=delivery.state,
            attempts=delivery.attempts,
            next_attempt_at=delivery.next_at,
            created_at=delivery.created_at,
            updated_at=delivery.updated_at,
            payload=delivery.payload,
            log=[AttemptView.model_construct(**asdict(attempt)) for attempt in delivery.log],
            links={
                "self": f"/deliveries/{delivery.id}",
                "job": f"/jobs/{delivery.job_id}",
                "replay": f"/deliveries/{delivery.id}/replay",
            },
        )


class DeliveryListView(BaseModel):
    """One page, newest first. Pass `next_cursor` as `cursor` for the next one; null on the last."""

    deliveries: list[DeliveryView]
    next_cursor: str | None

    @classmethod
    def of(cls, page: DeliveryPage) -> DeliveryListView:
        """The view of a page."""
        shown = [DeliveryView.of(delivery) for delivery in page.deliveries]
        return cls.model_construct(deliveries=shown, next_cursor=page.next_cursor)


class SecretView(BaseModel):
    """A signing secret without the secret. It signs until `retires_at`; the newest one has no end."""

    id: str
    created_at: datetime
    retires_at: datetime | None

    @classmethod
    def of(cls, secret: SecretRecord) -> SecretView:
        """The view of a record."""
        return cls.model_construct(**asdict(secret))


class SecretListView(BaseModel):
    """Those that sign now, newest first."""

    secrets: list[SecretView]


class NewSecretView(SecretView):
    """The only answer that ever holds the secret: `whsec_` and base64, as Standard Webhooks has it."""

    secret: str
