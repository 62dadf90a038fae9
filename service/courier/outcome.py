"""What came of one attempt, and what follows from it. Decisions are values: tested without a network."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum

from rebase.schemas.callback_policy import compute_next_delay
from rebase.schemas.callbacks import DeliveryState
from rebase.store.deliveries import Settlement


class FailureReason(StrEnum):
    """Why an attempt does not count as delivered. Stands in the log."""

    REFUSED_URL = "refused_url"  # the deployment's rules changed since the job was submitted
    REFUSED_ADDRESS = "refused_address"
    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    PROTOCOL = "protocol"
    REDIRECT = "redirect"
    STATUS = "status"
    GONE = "gone"
    NO_SECRET = "no_secret"  # noqa: S105  (a word, not one)
    COURIER_LOST = "courier_lost"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """The receiver's status, or a reason why there is none; both for a status that is not 2xx."""

    status: int | None = None
    reason: FailureReason | None = None
    detail: str | None = None
    retry_after_s: float | None = None  # Retry-After
    duration_ms: int = 0


def classify_status(status: int, retry_after: str | None, now: datetime) -> AttemptResult:
    """What a status means: 2xx is delivered, a redirect is a failure like any other, 410 is an end."""
    if 200 <= status < 300:
        return AttemptResult(status)
    if 300 <= status < 400:
        return AttemptResult(
            status, FailureReason.REDIRECT, "Redirects are not followed; name the final URL."
        )
    if status == 410:
        return AttemptResult(
            status, FailureReason.GONE, "The receiver wants no more; nothing is sent until a replay."
        )
    retry_after_s = parse_retry_after(retry_after, now) if status in {429, 503} else None
    return AttemptResult(status, FailureReason.STATUS, f"The receiver answered {status}.", retry_after_s)


def parse_retry_after(text: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for, given as seconds or as a date; None: nothing usable."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        retry_at = parsedate_to_datetime(text)
        return max(0.0, (retry_at - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def decide_settlement(
    result: AttemptResult, failures: int, delays: tuple[float, ...], seed: str, now: datetime
) -> Settlement:
    """Where a delivery goes. `failures`: how many attempts of this round had failed before this one."""
    if result.reason is None:
        return Settlement(DeliveryState.DELIVERED)
    if result.reason is FailureReason.GONE:
        return Settlement(DeliveryState.STOPPED)
    delay = compute_next_delay(delays, failures + 1, seed, result.retry_after_s)
    if delay is None:
        return Settlement(DeliveryState.FAILED)
    return Settlement(DeliveryState.PENDING, now + timedelta(seconds=delay))
