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
from service.courier.outcome import Outcome, Reason, judge, retry_after_s, settlement_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WAITS = parse_delays(DEFAULT_DELAYS)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (200, None), (202, None), (204, None), (299, None),
        (301, Reason.REDIRECT), (302, Reason.REDIRECT), (304, Reason.REDIRECT), (308, Reason.REDIRECT),
        (400, Reason.STATUS), (401, Reason.STATUS), (404, Reason.STATUS), (410, Reason.GONE),
        (429, Reason.STATUS), (500, Reason.STATUS), (503, Reason.STATUS), (700, Reason.STATUS),
    ],
)  # fmt: skip
def test_only_2xx_is_delivered(status: int, reason: Reason | None) -> None:
    assert judge(status, None, NOW).reason is reason


def test_the_default_schedule_ends_after_nine_attempts_and_a_day_and_a_half() -> None:
    ends = []
    for failures in range(20):
        settlement = settlement_of(Outcome(500, Reason.STATUS), failures, WAITS, "id", NOW)
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
    assert settlement_of(judge(410, None, NOW), 0, WAITS, "id", NOW).state is DeliveryState.STOPPED
    assert settlement_of(judge(200, None, NOW), 8, WAITS, "id", NOW).state is DeliveryState.DELIVERED


def test_retry_after_is_honoured_where_it_has_a_meaning_and_within_a_day() -> None:
    for status, asked, least in ((503, "120", 120), (429, "99999999999", MAX_RETRY_AFTER_S), (503, "0", 5)):
        at = settlement_of(judge(status, asked, NOW), 0, WAITS, "id", NOW).next_at
        assert at is not None
        assert least <= (at - NOW).total_seconds() <= least * (1 + JITTER)
    at = settlement_of(judge(500, "120", NOW), 0, WAITS, "id", NOW).next_at
    assert at is not None
    assert (at - NOW).total_seconds() < 10


def test_retry_after_may_be_a_date() -> None:
    assert retry_after_s(format_datetime(NOW + timedelta(seconds=90), usegmt=True), NOW) == 90
    assert retry_after_s(format_datetime(NOW - timedelta(seconds=90), usegmt=True), NOW) == 0
    # Without a zone there is no telling.
    assert retry_after_s("Thu, 01 Jan 2026 00:01:30", NOW) in (None, 90)


@given(st.text(max_size=60))
def test_no_header_makes_the_courier_stumble(text: str) -> None:
    asked = retry_after_s(text, NOW)
    assert asked is None or asked >= 0
