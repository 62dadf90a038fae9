"""What a request says about callbacks, and the words for their events and states."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, field_validator

from core.callbacks.url import MAX_URL_LENGTH, parse_callback_url
from core.states import TERMINAL, JobState


class CallbackEvent(StrEnum):
    """What can be told of a job."""

    JOB_STARTED = "job.started"
    JOB_SUCCEEDED = "job.succeeded"
    JOB_REJECTED = "job.rejected"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"


class DeliveryState(StrEnum):
    """Where a delivery is. Only `pending` ones move by themselves; the others can be replayed."""

    PENDING = "pending"
    DELIVERED = "delivered"  # a 2xx
    FAILED = "failed"  # given up after the last wait
    STOPPED = "stopped"  # the receiver said 410, to this one or to an earlier one


# The move that an event tells of. `started` is told of every attempt, not only of the first.
EVENT_BY_STATE: dict[JobState, CallbackEvent] = {
    JobState.RUNNING: CallbackEvent.JOB_STARTED,
    JobState.SUCCEEDED: CallbackEvent.JOB_SUCCEEDED,
    JobState.REJECTED: CallbackEvent.JOB_REJECTED,
    JobState.FAILED: CallbackEvent.JOB_FAILED,
    JobState.CANCELLED: CallbackEvent.JOB_CANCELLED,
}
_TERMINAL_EVENTS = tuple(EVENT_BY_STATE[state] for state in JobState if state in TERMINAL)


class CallbackSpec(BaseModel):
    """Where to send a signed message when the job moves, and about which moves."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(
        max_length=MAX_URL_LENGTH,
        description="An https URL on a public host, without credentials; redirects are not followed.",
    )
    events: tuple[CallbackEvent, ...] = Field(
        default=_TERMINAL_EVENTS,
        max_length=16,
        json_schema_extra={"minItems": 1},
        description="Default: every way in which a job can end.",
    )

    @field_validator("url")
    @classmethod
    def _validate_url(cls, value: str) -> str:
        parse_callback_url(value)
        return value

    @field_validator("events")
    @classmethod
    def _normalize_events(cls, value: Sequence[CallbackEvent]) -> tuple[CallbackEvent, ...]:
        """In one order, so that the same request stays the same request."""
        if not value:
            raise ValueError("must name at least one event; leave it out for every end of a job")
        return tuple(event for event in CallbackEvent if event in value)
