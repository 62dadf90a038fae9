"""What the API shows of deliveries and signing secrets. As in `service.views`, nothing is validated again."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from rebase.schemas.callbacks import CallbackEvent, DeliveryState

if TYPE_CHECKING:
    from rebase.store.deliveries import DeliveryPage, DeliveryRecord
    from rebase.store.signing_secrets import SecretRecord


class AttemptOut(BaseModel):
    """One attempt. Without `reason` it was accepted; with a `reason` and no `status` nobody answered."""

    number: int
    at: datetime
    status: int | None
    reason: str | None
    detail: str | None
    duration_ms: int | None


class DeliveryOut(BaseModel):
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
    log: list[AttemptOut]
    links: dict[str, str]

    @classmethod
    def from_record(cls, delivery: DeliveryRecord) -> DeliveryOut:
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
            log=[AttemptOut.model_construct(**asdict(attempt)) for attempt in delivery.log],
            links={
                "self": f"/deliveries/{delivery.id}",
                "job": f"/jobs/{delivery.job_id}",
                "replay": f"/deliveries/{delivery.id}/replay",
            },
        )


class DeliveryListOut(BaseModel):
    """One page, newest first. Pass `next_cursor` as `cursor` for the next one; null on the last."""

    deliveries: list[DeliveryOut]
    next_cursor: str | None

    @classmethod
    def from_page(cls, page: DeliveryPage) -> DeliveryListOut:
        """The view of a page."""
        deliveries = [DeliveryOut.from_record(delivery) for delivery in page.deliveries]
        return cls.model_construct(deliveries=deliveries, next_cursor=page.next_cursor)


class SecretOut(BaseModel):
    """A signing secret without the secret. It signs until `retires_at`; the newest one has no end."""

    id: str
    created_at: datetime
    retires_at: datetime | None

    @classmethod
    def from_record(cls, secret: SecretRecord) -> SecretOut:
        """The view of a record."""
        return cls.model_construct(**asdict(secret))


class SecretListOut(BaseModel):
    """Those that sign now, newest first."""

    secrets: list[SecretOut]


class NewSecretOut(SecretOut):
    """The only answer that ever holds the secret: `whsec_` and base64, as Standard Webhooks has it."""

    secret: str
