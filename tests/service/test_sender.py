"""What an answer means and when to try again: plain values, no network."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.schemas.callback_policy import (
    DEFAULT_DELAYS,
    JITTER,
    MAX_RETRY_AFTER_S,
    compute_next_delay,
    parse_delays,
)
from rebase.schemas.callbacks import DeliveryState
from service.callbacks.sender import (
    AttemptResult,
    FailureReason,
    classify_status,
    decide_settlement,
    parse_retry_after,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WAITS = parse_delays(DEFAULT_DELAYS)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (200, None), (202, None), (204, None), (299, None),
        (301, FailureReason.REDIRECT), (302, FailureReason.REDIRECT), (304, FailureReason.REDIRECT),
        (308, FailureReason.REDIRECT),
        (400, FailureReason.STATUS), (401, FailureReason.STATUS), (404, FailureReason.STATUS),
        (410, FailureReason.GONE), (429, FailureReason.STATUS), (500, FailureReason.STATUS),
        (503, FailureReason.STATUS), (700, FailureReason.STATUS),
    ],
)  # fmt: skip
def test_only_2xx_is_delivered(status: int, reason: FailureReason | None) -> None:
    assert classify_status(status, None, NOW).reason is reason


def test_the_default_schedule_ends_after_nine_attempts_and_a_day_and_a_half() -> None:
    ends = []
    for failures in range(20):
        settlement = decide_settlement(AttemptResult(500, FailureReason.STATUS), failures, WAITS, "id", NOW)
        ends.append(settlement.state)
        assert (settlement.next_at is None) == (settlement.state is DeliveryState.FAILED)

    assert ends.count(DeliveryState.PENDING) == 8
    assert ends[8] is DeliveryState.FAILED
    assert timedelta(seconds=sum(WAITS)) > timedelta(hours=36)


@given(st.integers(1, len(WAITS)), st.text(max_size=40))
def test_jitter_lengthens_a_wait_by_a_fifth_at_most_and_follows_from_the_seed(
    failures: int, seed: str
) -> None:
    wait = compute_next_delay(WAITS, failures, seed, None)

    assert wait is not None
    assert WAITS[failures - 1] <= wait <= WAITS[failures - 1] * (1 + JITTER)
    assert wait == compute_next_delay(WAITS, failures, seed, None)


def test_what_failed_together_does_not_come_back_together() -> None:
    waits = {compute_next_delay(WAITS, 4, f"delivery-{number}", None) for number in range(50)}
    assert len(waits) == 50


def test_gone_ends_a_delivery_and_success_does_too() -> None:
    assert (
        decide_settlement(classify_status(410, None, NOW), 0, WAITS, "id", NOW).state is DeliveryState.STOPPED
    )
    assert (
        decide_settlement(classify_status(200, None, NOW), 8, WAITS, "id", NOW).state
        is DeliveryState.DELIVERED
    )


def test_retry_after_is_honoured_where_it_has_a_meaning_and_within_a_day() -> None:
    for status, asked, least in ((503, "120", 120), (429, "99999999999", MAX_RETRY_AFTER_S), (503, "0", 5)):
        at = decide_settlement(classify_status(status, asked, NOW), 0, WAITS, "id", NOW).next_at
        assert at is not None
        assert least <= (at - NOW).total_seconds() <= least * (1 + JITTER)
    at = decide_settlement(classify_status(500, "120", NOW), 0, WAITS, "id", NOW).next_at
    assert at is not None
    assert (at - NOW).total_seconds() < 10


def test_retry_after_may_be_a_date() -> None:
    assert parse_retry_after(format_datetime(NOW + timedelta(seconds=90), usegmt=True), NOW) == 90
    assert parse_retry_after(format_datetime(NOW - timedelta(seconds=90), usegmt=True), NOW) == 0
    # Without a zone there is no telling.
    assert parse_retry_after("Thu, 01 Jan 2026 00:01:30", NOW) in (None, 90)


@given(st.text(max_size=60))
def test_no_header_makes_the_courier_stumble(text: str) -> None:
    asked = parse_retry_after(text, NOW)
    assert asked is None or asked >= 0
