"""Trying again: how often, how long, and what is raised in the end."""

from __future__ import annotations

from itertools import islice

import pytest

from rebase.retry import Backoff, retry


class Flaky:
    """Fails `failures` times, then answers."""

    def __init__(self, failures: int, error: type[Exception] = OSError) -> None:
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error(f"call {self.calls}")
        return "done"


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits; what would have been waited for is written down, and passes on the clock."""
    slept: list[float] = []
    monkeypatch.setattr("rebase.retry.time.sleep", slept.append)
    monkeypatch.setattr("rebase.retry.time.monotonic", lambda: sum(slept))
    return slept


def test_pauses_grow_up_to_their_bound() -> None:
    assert list(islice(Backoff(1.0, max_s=5.0).delays(), 5)) == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert list(islice(Backoff(0.5, factor=1.0).delays(), 3)) == [0.5, 0.5, 0.5]


def test_a_call_that_works_again_gives_its_answer(pauses: list[float]) -> None:
    seen: list[str] = []
    call = Flaky(2)
    assert retry(call, OSError, Backoff(1.0), on_retry=lambda exc: seen.append(str(exc))) == "done"
    assert (call.calls, pauses, seen) == (3, [1.0, 2.0], ["call 1", "call 2"])


def test_the_last_error_is_raised_when_the_attempts_are_used_up(pauses: list[float]) -> None:
    with pytest.raises(OSError, match="call 3"):
        retry(Flaky(9), OSError, Backoff(1.0), attempts=3)
    assert pauses == [1.0, 2.0], "no pause after the last one"


def test_no_pause_ends_after_the_deadline(pauses: list[float]) -> None:
    with pytest.raises(OSError, match="call 3"):
        retry(Flaky(9), OSError, Backoff(1.0), timeout_s=6.0)
    assert pauses == [1.0, 2.0]


def test_other_errors_pass_at_once(pauses: list[float]) -> None:
    with pytest.raises(KeyError):
        retry(Flaky(1, KeyError), OSError, Backoff(1.0))
    assert pauses == []
