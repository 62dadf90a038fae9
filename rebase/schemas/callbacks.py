"""Callbacks: strict URL parsing, what requests and responses say about deliveries, and signing secrets.

Browsers, resolvers and libraries disagree about odd URLs, which is how SSRF guards are bypassed. So a URL is
parsed once, the sender uses only the parts, and anything odd is rejected: credentials, fragments, zones,
spaces, addresses in octal, hex or as one number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any

import idna
from pydantic import BaseModel, ConfigDict, Field, field_validator

from rebase.schemas.states import TERMINAL, JobState

if TYPE_CHECKING:
    from rebase.store.deliveries import DeliveryPage, DeliveryRecord
    from rebase.store.signing_secrets import SecretRecord


MAX_URL_LENGTH = 2048
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^#]*)(#.*)?", re.DOTALL)
_AUTHORITY = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*))(:[0-9]{1,5})?")
_CHARACTER = r"[\w.~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2}"
_TARGET = re.compile(rf"(?:/(?:{_CHARACTER})*)?(?:\?(?:{_CHARACTER}|\?)*)?", re.ASCII)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_DEFAULT_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a callback goes. `host`: a lower-case ASCII name without trailing dot, or an address as text."""

    scheme: str
    host: str
    port: int
    target: str  # path and query, as in the request line
    address: IPv4Address | IPv6Address | None  # the host, if it is an address

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = format_host(self.host)
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Host and port, by which deliveries are counted."""
        return f"{format_host(self.host)}:{self.port}"


def format_host(host: str) -> str:
    """An IPv6 address in brackets, as in a URL; any other host unchanged."""
    return f"[{host}]" if ":" in host else host


def parse_callback_url(url: str) -> Endpoint:
    """Parse a callback URL. Raises ValueError with a message for the user."""
    if len(url) > MAX_URL_LENGTH:
        raise ValueError(f"may have at most {MAX_URL_LENGTH} characters")
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError("is not a URL such as https://hooks.example.com/rebase")
    scheme, authority, target, fragment = match[1].lower(), match[2], match[3], match[4]
    if scheme not in _DEFAULT_PORTS:
        raise ValueError("must begin with https://")
    if fragment is not None:
        raise ValueError("must not have a fragment ('#…'); it would never be sent")
    if "@" in authority:
        raise ValueError("must not contain a user name or password; verify the signature instead")
    if _TARGET.fullmatch(target) is None:
        raise ValueError("has a path or query with characters that must be percent-encoded")
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise ValueError("has no host, or a port that is not a number")
    port = int(parts[3][1:]) if parts[3] else _DEFAULT_PORTS[scheme]
    if not 1 <= port <= 65535:
        raise ValueError("has a port that does not exist")
    address, host = (_parse_ipv6(parts[1]), "") if parts[1] is not None else _parse_host(parts[2])
    host = host or str(address)
    return Endpoint(scheme, host, port, target if target.startswith("/") else f"/{target}", address)


def _parse_ipv6(text: str) -> IPv6Address:
    try:
        address = IPv6Address(text)
    except ValueError:
        address = None
    if address is None or address.scope_id is not None:
        raise ValueError("has brackets around something other than an IPv6 address without a zone")
    return address


def _parse_host(text: str) -> tuple[IPv4Address | None, str]:
    """A host name in its canonical ASCII form, or an IPv4 address in dotted-decimal form."""
    if not text.isascii():
        try:
            text = idna.encode(text, uts46=True).decode()
        except idna.IDNAError:
            raise ValueError("has a host that is not a valid international name") from None
    host = text.lower().removesuffix(".")
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("has no valid host name")
    if _NUMBER.fullmatch(labels[-1]) is None:
        return None, host
    try:
        return IPv4Address(host), host
    except ValueError:
        raise ValueError("has a host that looks like an address; write it as four decimal numbers") from None


# Callback settings of a request, and the names of events and states.


class CallbackEvent(StrEnum):
    """The events of a job that can trigger a callback."""

    JOB_STARTED = "job.started"
    JOB_SUCCEEDED = "job.succeeded"
    JOB_REJECTED = "job.rejected"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"


class DeliveryState(StrEnum):
    """The state of a delivery. Only `pending` ones proceed by themselves; the others can be replayed."""

    PENDING = "pending"
    DELIVERED = "delivered"  # answered with a 2xx status
    FAILED = "failed"  # given up after the last retry
    STOPPED = "stopped"  # the receiver answered 410, to this delivery or an earlier one


# The event for each transition. `started` is sent for every attempt, not only for the first.
EVENT_BY_STATE: dict[JobState, CallbackEvent] = {
    JobState.RUNNING: CallbackEvent.JOB_STARTED,
    JobState.SUCCEEDED: CallbackEvent.JOB_SUCCEEDED,
    JobState.REJECTED: CallbackEvent.JOB_REJECTED,
    JobState.FAILED: CallbackEvent.JOB_FAILED,
    JobState.CANCELLED: CallbackEvent.JOB_CANCELLED,
}
_TERMINAL_EVENTS = tuple(EVENT_BY_STATE[state] for state in JobState if state in TERMINAL)


class CallbackSpec(BaseModel):
    """Where to send a signed message about the job, and for which events."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(
        max_length=MAX_URL_LENGTH,
        description="An https URL on a public host, without credentials; redirects are not followed.",
    )
    events: tuple[CallbackEvent, ...] = Field(
        default=_TERMINAL_EVENTS,
        max_length=16,
        json_schema_extra={"minItems": 1},
        description="Default: every event that ends a job.",
    )

    @field_validator("url")
    @classmethod
    def _validate_url(cls, value: str) -> str:
        parse_callback_url(value)
        return value

    @field_validator("events")
    @classmethod
    def _normalize_events(cls, value: Sequence[CallbackEvent]) -> tuple[CallbackEvent, ...]:
        """In canonical order, so that equal requests have equal fingerprints."""
        if not value:
            raise ValueError("must name at least one event; omit it to receive every event that ends a job")
        return tuple(event for event in CallbackEvent if event in value)


class AttemptOut(BaseModel):
    """One attempt. Without `reason` it was accepted; with a `reason` but no `status` no response came."""

    number: int
    at: datetime
    status: int | None
    reason: str | None
    detail: str | None
    duration_ms: int | None


class DeliveryOut(BaseModel):
    """One message to one receiver: `id` is its `webhook-id`, `payload` the body sent, `log` all attempts."""

    id: str
    job_id: str
    event: CallbackEvent
    url: str
    state: DeliveryState
    attempts: int
    next_attempt_at: datetime | None = Field(description="Set only while pending.")
    created_at: datetime
    updated_at: datetime
    payload: dict[str, Any]
    log: list[AttemptOut]
    links: dict[str, str]

    @classmethod
    def from_record(cls, delivery: DeliveryRecord) -> DeliveryOut:
        """Build from a record."""
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
    """One page, newest first. Pass `next_cursor` as `cursor` for the next page; null on the last one."""

    deliveries: list[DeliveryOut]
    next_cursor: str | None

    @classmethod
    def from_page(cls, page: DeliveryPage) -> DeliveryListOut:
        """Build from a page of records."""
        deliveries = [DeliveryOut.from_record(delivery) for delivery in page.deliveries]
        return cls.model_construct(deliveries=deliveries, next_cursor=page.next_cursor)


class SecretOut(BaseModel):
    """A signing secret without its value. It signs until `retires_at`, which is null for the newest one."""

    id: str
    created_at: datetime
    retires_at: datetime | None

    @classmethod
    def from_record(cls, secret: SecretRecord) -> SecretOut:
        """Build from a record."""
        return cls.model_construct(**asdict(secret))


class SecretListOut(BaseModel):
    """The secrets that currently sign, newest first."""

    secrets: list[SecretOut]


class NewSecretOut(SecretOut):
    """The only response that contains the secret: `whsec_` and base64, as in Standard Webhooks."""

    secret: str
