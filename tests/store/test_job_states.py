"""Any order of requests, claims, deaths, sweeps and settlements keeps the promises of the state machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import integers, sampled_from
from sqlalchemy import select

import migrations
from rebase.errors import Cancelled, LeaseLost, PublicError, StateConflict
from rebase.schemas.callbacks import EVENT_BY_STATE
from rebase.schemas.states import TERMINAL, TRANSITIONS, JobState, Phase
from rebase.store.database import Database
from rebase.store.records import Claim
from rebase.store.store import Store
from rebase.store.tables.jobs import Job
from support.callbacks import EVERYTHING, a_job, book_of
from support.databases import HandClock

TENANT = "default"
ERROR = PublicError(code="hub_unavailable", message="Down.", retryable=True)
LEASE_S = 60.0

WRITES: dict[str, Callable[[Store, Claim], object]] = {
    "heartbeat": lambda store, claim: store.queue.heartbeat(claim, LEASE_S),
    "report": lambda store, claim: store.queue.report_progress(claim, Phase.READING, 1, 2),
    "publishing": lambda store, claim: store.queue.mark_publishing(claim),
    "diagnostics": lambda store, claim: store.queue.save_diagnostics(claim, {}, [{"n": 1}], "compatible"),
    "succeed": lambda store, claim: store.queue.succeed(claim, {"ok": True}),
    "reject": lambda store, claim: store.queue.reject(claim, ERROR),
    "fail for good": lambda store, claim: store.queue.fail(claim, ERROR),
    "fail for now": lambda store, claim: store.queue.fail(claim, ERROR, 10.0),
    "cancelled": lambda store, claim: store.queue.mark_cancelled(claim),
}


class JobMachine(RuleBasedStateMachine):
    """One job, any number of workers that claim it over time."""

    template: Path

    @initialize()
    def submit(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        shutil.copy(self.template, self.folder / "rebase.db")
        self.clock = HandClock()
        self.db = Database.open(f"sqlite:///{self.folder / 'rebase.db'}")
        self.store = Store(self.db, self.clock)
        self.job_id = a_job(self.store, events=EVERYTHING)
        self.claims: list[Claim] = []
        self.version = 0

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.db.close()
            shutil.rmtree(self.folder)

    @rule(owner=sampled_from(["worker-1", "worker-2"]))
    def claim(self, owner: str) -> None:
        before = self.store.jobs.get(TENANT, self.job_id)
        claim = self.store.queue.claim(self.job_id, owner, LEASE_S)
        if claim is None:
            assert before.state is not JobState.QUEUED
        else:
            assert before.state in {JobState.QUEUED, JobState.RETRY_WAIT}
            assert claim.attempt == before.attempt + 1 <= before.attempt_limit
            self.claims.append(claim)

    @precondition(lambda self: self.claims)
    @rule(write=sampled_from(sorted(WRITES)), back=integers(0, 3))
    def write(self, write: str, back: int) -> None:
        claim = self.claims[max(0, len(self.claims) - 1 - back)]
        before = self.store.jobs.get(TENANT, self.job_id)
        try:
            WRITES[write](self.store, claim)
        except (LeaseLost, Cancelled):
            assert self.store.jobs.get(TENANT, self.job_id) == before
        else:
            assert claim is self.claims[-1]
            assert before.state in {JobState.RUNNING, JobState.PUBLISHING}

    @rule(seconds=sampled_from([1.0, 11.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.clock.move(seconds)

    @rule()
    def sweep(self) -> None:
        self.store.outbox.reap()
        assert self.store.outbox.reap().notifications == 0  # what is done once needs no second time

    @rule()
    def relay(self) -> None:
        self.store.outbox.publish(lambda _: None)

    @rule(ask=sampled_from(["cancel", "retry"]))
    def ask(self, ask: str) -> None:
        before = self.store.jobs.get(TENANT, self.job_id)
        try:
            getattr(self.store.jobs, ask)(TENANT, self.job_id)
        except StateConflict:
            assert self.store.jobs.get(TENANT, self.job_id) == before

    @invariant()
    def a_done_job_has_one_of_result_and_error_and_nobody_holds_it(self) -> None:
        if not hasattr(self, "store"):
            return
        job = self.store.jobs.get(TENANT, self.job_id)
        if job.is_done:
            assert (job.result is None) != (job.error is None)
            assert job.finished_at is not None
        else:
            assert job.result is None
            assert job.error is None
        assert job.version >= self.version
        self.version = job.version

    @invariant()
    def the_history_follows_the_moves_and_ends_where_the_job_is(self) -> None:
        if not hasattr(self, "store"):
            return
        events = self.store.jobs.list_events(TENANT, self.job_id)
        states = [JobState(event.data["state"]) for event in events if event.type == "state"]
        assert all(after in TRANSITIONS[before] for before, after in pairwise(states))
        if len(events) < 200:
            assert states[-1] is self.store.jobs.get(TENANT, self.job_id).state

    @invariant()
    def every_start_and_every_end_is_told_once_and_nothing_else(self) -> None:
        if not hasattr(self, "store"):
            return
        events = self.store.jobs.list_events(TENANT, self.job_id)
        if len(events) < 200:
            moves = [JobState(event.data["state"]) for event in events if event.type == "state"]
            told = [delivery.event for delivery in book_of(self.store).list_for_job(TENANT, self.job_id)]
            assert told == [EVENT_BY_STATE[state].value for state in moves if state in EVENT_BY_STATE]

    @invariant()
    def a_queued_job_will_be_rung_for_within_the_hour(self) -> None:
        if (
            not hasattr(self, "store")
            or self.store.jobs.get(TENANT, self.job_id).state is not JobState.QUEUED
        ):
            return
        with self.db.read() as connection:
            again_at = connection.scalar(select(Job.ring_after))
        assert again_at is not None
        assert (again_at - self.clock()).total_seconds() <= 3600


def test_every_order_of_things_keeps_the_promises(tmp_path: Path) -> None:
    JobMachine.template = tmp_path / "template.db"
    migrations.upgrade(f"sqlite:///{JobMachine.template}")
    run_state_machine_as_test(
        JobMachine,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_only_a_person_moves_an_ended_job(state: JobState) -> None:
    assert TRANSITIONS[state] <= {JobState.QUEUED}
