"""A job from claim to settlement, with the accidents that can happen on the way."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from billiard.exceptions import SoftTimeLimitExceeded

from rebase.errors import Busy, DiskFull, HubUnavailable, LeaseLost
from rebase.hub.base import Published
from rebase.hub.local import LocalHub
from rebase.schemas.states import JobState, Phase
from rebase.store.repository import utcnow
from rebase.store.tables.base import DEFAULT_TENANT
from support.tiny_repos import OTHER, make_hub
from support.worker_harness import MakeWorker, WorkerHarness
from workers.job_progress import JobProgress
from workers.lease import LeaseHeartbeat
from workers.runner import run_job


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def harness(prepared: Path, tmp_path: Path, database_url: str, make_worker: MakeWorker) -> WorkerHarness:
    shutil.copytree(prepared, tmp_path / "hub")
    return make_worker(database_url)


def test_a_job_ends_with_one_commit_that_carries_its_id_and_its_evidence_in_sql(
    harness: WorkerHarness,
) -> None:
    job_id = harness.submit()
    harness.run(job_id)

    job = harness.job(job_id)
    assert job.state is JobState.SUCCEEDED
    assert job.verdict == "compatible"
    assert job.result is not None
    assert job.result["output"]["repo_id"] == "acme/out"
    assert harness.count_commits(job_id) == 1
    assert len(harness.store.jobs.get_diagnostics(DEFAULT_TENANT, job_id).sites) == 14
    assert not list((harness.root / "home" / "work").iterdir())


def test_a_doorbell_that_rings_twice_does_the_work_once(harness: WorkerHarness) -> None:
    job_id = harness.submit()
    harness.run(job_id)
    harness.run(job_id, owner="worker-2")

    assert harness.job(job_id).attempt == 1
    assert harness.count_commits(job_id) == 1


def test_a_precheck_job_ends_with_the_verdict_and_publishes_nothing(harness: WorkerHarness) -> None:
    job_id = harness.submit("precheck")
    harness.run(job_id)

    job = harness.job(job_id)
    assert job.state is JobState.SUCCEEDED
    assert job.result is not None
    assert job.result["verdict"] == "compatible"
    assert not (harness.root / "hub" / "acme" / "out").exists()


def test_an_incompatible_pair_is_rejected_and_its_evidence_kept(harness: WorkerHarness) -> None:
    job_id = harness.submit(target={"repo_id": OTHER}, method={"name": "cross_lora", "rank": 8})
    harness.run(job_id)

    job = harness.job(job_id)
    assert job.state is JobState.REJECTED
    assert job.verdict == "incompatible"
    assert job.error is not None
    assert job.error["code"] == "incompatible"


def test_bad_input_fails_at_once_with_a_code_and_the_next_job_succeeds(harness: WorkerHarness) -> None:
    bad = harness.submit(adapter={"repo_id": "acme/nothing"})
    good = harness.submit()
    harness.run(bad)
    harness.run(good)

    job = harness.job(bad)
    assert job.state is JobState.FAILED
    assert job.attempt == 1
    assert job.error is not None
    assert (job.error["code"], job.error["pointer"]) == ("repo_not_found", "/adapter")
    assert harness.job(good).state is JobState.SUCCEEDED


class _Hub(LocalHub):
    """A local hub to which something happens around a commit."""

    before: Callable[[], None] = staticmethod(lambda: None)
    after: Callable[[], None] = staticmethod(lambda: None)

    def publish(self, *args: Any, **kwargs: Any) -> Published:
        self.before()
        published = super().publish(*args, **kwargs)
        self.after()
        return published


def _raises(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize("error", [HubUnavailable("The Hub is away."), DiskFull("No space.")])
def test_trouble_that_may_pass_waits_and_tries_again(harness: WorkerHarness, error: Exception) -> None:
    job_id = harness.submit()
    troubled = _Hub(harness.root / "hub")
    troubled.before = _raises(error)

    harness.run(job_id, troubled)
    assert harness.job(job_id).state is JobState.RETRY_WAIT
    harness.run(job_id)

    job = harness.job(job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
    assert harness.count_commits(job_id) == 1


def test_trouble_that_does_not_pass_ends_the_job_when_its_attempts_are_spent(harness: WorkerHarness) -> None:
    job_id = harness.submit()
    troubled = _Hub(harness.root / "hub")
    troubled.before = _raises(HubUnavailable("The Hub is away."))
    for _ in range(4):
        harness.run(job_id, troubled)

    job = harness.job(job_id)
    assert (job.state, job.attempt) == (JobState.FAILED, 3)
    assert job.error is not None
    assert job.error["code"] == "hub_unavailable"


def test_an_answer_lost_after_the_commit_does_not_commit_twice(harness: WorkerHarness) -> None:
    job_id = harness.submit()
    troubled = _Hub(harness.root / "hub")
    troubled.after = _raises(HubUnavailable("The answer got lost."))
    harness.run(job_id, troubled)
    assert harness.count_commits(job_id) == 1
    harness.run(job_id)

    job = harness.job(job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
    assert harness.count_commits(job_id) == 1
    assert job.result is not None
    assert job.result["verdict"] == "compatible"


def test_a_job_whose_commit_stands_is_not_called_cancelled(harness: WorkerHarness) -> None:
    job_id = harness.submit()
    troubled = _Hub(harness.root / "hub")
    troubled.after = _raises(HubUnavailable("The answer got lost."))
    harness.run(job_id, troubled)

    assert harness.store.jobs.cancel(DEFAULT_TENANT, job_id).state is JobState.RETRY_WAIT
    harness.run(job_id)

    job = harness.job(job_id)
    assert job.state is JobState.SUCCEEDED
    assert harness.count_commits(job_id) == 1


def test_a_job_that_came_to_publishing_is_cancelled_once_no_commit_was_found(harness: WorkerHarness) -> None:
    job_id = harness.submit()
    troubled = _Hub(harness.root / "hub")
    troubled.before = _raises(HubUnavailable("The Hub is away."))
    harness.run(job_id, troubled)

    harness.store.jobs.cancel(DEFAULT_TENANT, job_id)
    harness.run(job_id)

    assert harness.job(job_id).state is JobState.CANCELLED
    assert harness.count_commits(job_id) == 0


@pytest.mark.parametrize("error", [SoftTimeLimitExceeded(), ZeroDivisionError("a bug")])
def test_trouble_after_the_commit_does_not_call_the_job_failed(
    harness: WorkerHarness, error: Exception
) -> None:
    job_id = harness.submit()
    troubled = _Hub(harness.root / "hub")
    troubled.after = _raises(error)
    harness.run(job_id, troubled)

    job = harness.job(job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    assert harness.count_commits(job_id) == 1


@pytest.mark.parametrize("create_pr", [False, True])
@pytest.mark.parametrize("moment", ["find_commit", "publishing"])
def test_a_worker_that_lost_its_job_and_commits_late_does_not_make_two_commits(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch, moment: str, create_pr: bool
) -> None:
    """`moment`: when the first worker's commit lands, as seen from the second one."""
    job_id = harness.submit(output={"repo_id": "acme/out", "create_pr": create_pr})
    late: list[Callable[[], None]] = []
    first = _Hub(harness.root / "hub")

    def hang(*args: Any, **kwargs: Any) -> Published:
        late.append(lambda: LocalHub.publish(first, *args, **kwargs) and None)
        raise LeaseLost("the rest of this worker is played by `late`")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # it still has its files
        patch.setattr(first, "publish", hang)
        harness.run(job_id, first)
        patch.setattr(harness.store, "clock", lambda: utcnow() + timedelta(hours=1))
        harness.store.outbox.reap()

    second = LocalHub(harness.root / "hub")
    if moment == "find_commit":
        original = second.find_commit

        def find_commit(repo_id: str, marker: str) -> Published | None:
            found = original(repo_id, marker)
            while late:
                late.pop()()
            return found

        monkeypatch.setattr(second, "find_commit", find_commit)
    else:
        _Stepped(monkeypatch, Phase.VERIFYING, late.pop())
    elsewhere = harness.settings.model_copy(update={"home": harness.root / "other-machine"})
    run_job(job_id, replace(harness.context(second, owner="worker-2"), settings=elsewhere))

    assert harness.job(job_id).state is JobState.SUCCEEDED
    assert harness.count_commits(job_id) == 1
    refs = harness.root / "hub" / "acme" / "out" / "refs"
    assert len([path for path in refs.rglob("*") if path.is_file()]) == 1


def test_somebody_elses_commit_in_between_is_not_overwritten(harness: WorkerHarness) -> None:
    job_id = harness.submit()
    theirs = harness.root / "theirs"
    theirs.mkdir()
    (theirs / "adapter_model.safetensors").write_bytes(b"theirs")

    def interfere() -> None:
        harness.hub.publish("acme/out", theirs, message="mine", parent=None, private=True, create_pr=False)

    troubled = _Hub(harness.root / "hub")
    troubled.before = interfere
    harness.run(job_id, troubled)
    assert harness.job(job_id).state is JobState.RETRY_WAIT
    harness.run(job_id)

    job = harness.job(job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "output_exists"
    assert harness.count_commits(job_id) == 0


def test_what_a_killed_worker_left_of_this_job_is_removed(harness: WorkerHarness) -> None:
    job_id = harness.submit()
    left = harness.root / "home" / "work" / f"{job_id}-0" / "adapter"
    left.mkdir(parents=True)
    (left / "adapter_model.safetensors").write_bytes(b"half")
    other = harness.root / "home" / "work" / ("0" * 32 + "-1")
    other.mkdir()
    harness.run(job_id)

    assert list((harness.root / "home" / "work").iterdir()) == [other]


def test_a_training_that_nobody_went_on_with_for_weeks_is_removed(harness: WorkerHarness) -> None:
    left = harness.root / "home" / "work" / "training" / "cast-0123"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    harness.run(harness.submit())
    assert not left.exists()


def test_a_disk_without_room_for_the_scratch_folder_is_no_unforeseen_error(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = harness.submit()
    original = Path.mkdir

    def mkdir(path: Path, *args: Any, **kwargs: Any) -> None:
        if job_id in path.name:
            raise OSError(errno.ENOSPC, "no space left on device")
        original(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    harness.run(job_id)

    assert harness.job(job_id).state is JobState.RETRY_WAIT


def test_a_heart_beats_on_after_an_odd_error_of_the_database(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = harness.store.queue.claim(harness.submit(), "worker-1", 5)
    assert claim is not None
    beats: list[bool] = []
    thrice = threading.Event()
    original = harness.store.queue.heartbeat

    def heartbeat(*args: Any) -> bool:
        beats.append(len(beats) > 0)
        if len(beats) > 2:
            thrice.set()
        if not beats[-1]:
            raise RuntimeError("odd")
        return original(*args)

    monkeypatch.setattr(harness.store.queue, "heartbeat", heartbeat)
    with LeaseHeartbeat(harness.store, claim, interval_s=0.02, lease_s=5) as heart:
        assert thrice.wait(30), "a heart that stopped at the odd error"
        heart.check()


def test_an_unforeseen_error_ends_the_job_without_its_cause_in_public(harness: WorkerHarness) -> None:
    job_id = harness.submit()
    troubled = _Hub(harness.root / "hub")
    troubled.before = _raises(ZeroDivisionError("secret detail"))
    harness.run(job_id, troubled)

    job = harness.job(job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "internal"
    assert "secret detail" not in str(job.error)


def _allocate_too_much() -> None:
    torch.empty(2**50)


@pytest.mark.parametrize(
    "trouble",
    [_raises(MemoryError()), _raises(torch.OutOfMemoryError("CUDA out of memory")), _allocate_too_much],
)
def test_a_machine_that_is_too_small_is_named_as_the_cause(
    harness: WorkerHarness, trouble: Callable[[], None]
) -> None:
    job_id = harness.submit()
    troubled = _Hub(harness.root / "hub")
    troubled.before = trouble
    harness.run(job_id, troubled)

    job = harness.job(job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "out_of_memory"


class _Stepped:
    """Runs something the first time a phase is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, phase: Phase, action: Callable[[], None]) -> None:
        original = JobProgress.update

        def step(watch: JobProgress, told: Phase, *rest: Any) -> None:
            if told is phase and not self.done.is_set():
                self.done.set()
                action()
            original(watch, told, *rest)

        self.done = threading.Event()
        monkeypatch.setattr(JobProgress, "update", step)


def test_a_cancellation_is_heard_between_steps(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = harness.submit()

    def cancel() -> None:
        harness.store.jobs.cancel(DEFAULT_TENANT, job_id)
        threading.Event().wait(0.3)  # six heartbeats

    _Stepped(monkeypatch, Phase.VERIFYING, cancel)
    harness.run(job_id)

    job = harness.job(job_id)
    assert job.state is JobState.CANCELLED
    assert harness.count_commits(job_id) == 0


def test_a_worker_that_lost_its_lease_drops_what_it_holds(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = harness.submit()

    def lose() -> None:
        monkeypatch.setattr(harness.store.queue, "heartbeat", _raises_always(LeaseLost("gone")))
        threading.Event().wait(0.3)

    _Stepped(monkeypatch, Phase.VERIFYING, lose)
    harness.run(job_id)

    assert harness.job(job_id).state is JobState.RUNNING  # the sweeper's business now
    assert harness.count_commits(job_id) == 0


def test_a_database_that_is_away_for_a_moment_does_not_hurt_a_job(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = harness.submit()
    calls = iter(range(2))
    original = harness.store.queue.succeed

    def succeed(*args: Any) -> None:
        if next(calls, None) is not None:
            raise Busy("locked")
        original(*args)

    monkeypatch.setattr(harness.store.queue, "succeed", succeed)
    monkeypatch.setattr(harness.store.queue, "report_progress", _raises_always(Busy("locked")))
    harness.run(job_id)

    assert harness.job(job_id).state is JobState.SUCCEEDED
    assert harness.count_commits(job_id) == 1


def test_a_database_that_is_away_when_the_bell_rings_leaves_the_job_waiting(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = harness.submit()
    with monkeypatch.context() as patch:
        patch.setattr(harness.store.queue, "claim", _raises_always(Busy("locked")))
        harness.run(job_id)

    assert harness.job(job_id).state is JobState.QUEUED


def _raises_always(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def test_re_converting_the_same_adapter_adds_a_commit_to_its_output(harness: WorkerHarness) -> None:
    first, second = harness.submit(), harness.submit(output={"repo_id": "acme/out", "dtype": "float32"})
    harness.run(first)
    harness.run(second)

    assert harness.job(second).state is JobState.SUCCEEDED
    assert harness.count_commits(first) == harness.count_commits(second) == 1
