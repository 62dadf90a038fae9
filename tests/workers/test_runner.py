"""A job from claim to settlement, with the accidents that can happen on the way."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from billiard.exceptions import SoftTimeLimitExceeded

from rebase.cache.factor_cache import FactorCache
from rebase.errors import Busy, DiskFull, HubUnavailable, LeaseLost
from rebase.hub.base import Published
from rebase.hub.local import LocalHub
from rebase.runtime import Runtime
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.states import JobState, Phase
from rebase.settings import Settings
from rebase.store.database import Database
from rebase.store.records import JobRecord
from rebase.store.repository import utcnow
from rebase.store.store import Store
from rebase.store.tables.base import DEFAULT_TENANT
from support.tiny_repos import ADAPTER, NEW, OTHER, make_hub
from workers.job_progress import JobProgress
from workers.lease import LeaseHeartbeat
from workers.runner import WorkerContext, run_job


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hub(tmp_path_factory.mktemp("hub"))


class Office:
    """A store, a hub folder and a worker that share them."""

    def __init__(self, root: Path, url: str) -> None:
        self.root, self.hub = root, LocalHub(root / "hub")
        self.store = Store(Database.open(url), max_attempts=3)
        self.settings = Settings(home=root / "home", heartbeat_s=0.05, lease_s=5, retry_base_s=0)
        self.cache = FactorCache(root / "cache", 2**30)

    def desk(self, hub: LocalHub | None = None, owner: str = "worker-1") -> WorkerContext:
        tools = Runtime(hub or self.hub, self.cache, torch.device("cpu"))
        return WorkerContext(self.settings, self.store, tools, owner)

    def submit(self, kind: Any = "convert", **changes: Any) -> str:
        body = {
            "adapter": {"repo_id": ADAPTER},
            "target": {"repo_id": NEW},
            "output": {"repo_id": "acme/out"},
        }
        request = ConversionRequest.model_validate({**body, **changes})
        return self.store.submissions.submit(DEFAULT_TENANT, kind, request)[0].id

    def job(self, job_id: str) -> JobRecord:
        return self.store.jobs.get(DEFAULT_TENANT, job_id)

    def commits(self, job_id: str) -> int:
        folder = self.root / "hub" / "acme" / "out" / "commits"
        return sum(f"Rebase-Job: {job_id}" in path.read_text() for path in folder.glob("*.json"))


@pytest.fixture
def office(prepared: Path, tmp_path: Path, database_url: str) -> Iterator[Office]:
    shutil.copytree(prepared, tmp_path / "hub")
    office = Office(tmp_path, database_url)
    yield office
    office.store.db.close()


def test_a_job_ends_with_one_commit_that_carries_its_id_and_its_evidence_in_sql(office: Office) -> None:
    job_id = office.submit()
    run_job(job_id, office.desk())

    job = office.job(job_id)
    assert job.state is JobState.SUCCEEDED
    assert job.verdict == "compatible"
    assert job.result is not None
    assert job.result["output"]["repo_id"] == "acme/out"
    assert office.commits(job_id) == 1
    assert len(office.store.jobs.get_diagnostics(DEFAULT_TENANT, job_id).sites) == 14
    assert not list((office.root / "home" / "work").iterdir())


def test_a_doorbell_that_rings_twice_does_the_work_once(office: Office) -> None:
    job_id = office.submit()
    run_job(job_id, office.desk())
    run_job(job_id, office.desk(owner="worker-2"))

    assert office.job(job_id).attempt == 1
    assert office.commits(job_id) == 1


def test_a_precheck_job_ends_with_the_verdict_and_publishes_nothing(office: Office) -> None:
    job_id = office.submit("precheck")
    run_job(job_id, office.desk())

    job = office.job(job_id)
    assert job.state is JobState.SUCCEEDED
    assert job.result is not None
    assert job.result["verdict"] == "compatible"
    assert not (office.root / "hub" / "acme" / "out").exists()


def test_an_incompatible_pair_is_rejected_and_its_evidence_kept(office: Office) -> None:
    job_id = office.submit(target={"repo_id": OTHER}, method={"name": "cross_lora", "rank": 8})
    run_job(job_id, office.desk())

    job = office.job(job_id)
    assert job.state is JobState.REJECTED
    assert job.verdict == "incompatible"
    assert job.error is not None
    assert job.error["code"] == "incompatible"


def test_bad_input_fails_at_once_with_a_code_and_the_next_job_succeeds(office: Office) -> None:
    bad = office.submit(adapter={"repo_id": "acme/nothing"})
    good = office.submit()
    run_job(bad, office.desk())
    run_job(good, office.desk())

    job = office.job(bad)
    assert job.state is JobState.FAILED
    assert job.attempt == 1
    assert job.error is not None
    assert (job.error["code"], job.error["pointer"]) == ("repo_not_found", "/adapter")
    assert office.job(good).state is JobState.SUCCEEDED


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
def test_trouble_that_may_pass_waits_and_tries_again(office: Office, error: Exception) -> None:
    job_id = office.submit()
    troubled = _Hub(office.root / "hub")
    troubled.before = _raises(error)

    run_job(job_id, office.desk(troubled))
    assert office.job(job_id).state is JobState.RETRY_WAIT
    run_job(job_id, office.desk())

    job = office.job(job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
    assert office.commits(job_id) == 1


def test_trouble_that_does_not_pass_ends_the_job_when_its_attempts_are_spent(office: Office) -> None:
    job_id = office.submit()
    troubled = _Hub(office.root / "hub")
    troubled.before = _raises(HubUnavailable("The Hub is away."))
    for _ in range(4):
        run_job(job_id, office.desk(troubled))

    job = office.job(job_id)
    assert (job.state, job.attempt) == (JobState.FAILED, 3)
    assert job.error is not None
    assert job.error["code"] == "hub_unavailable"


def test_an_answer_lost_after_the_commit_does_not_commit_twice(office: Office) -> None:
    job_id = office.submit()
    troubled = _Hub(office.root / "hub")
    troubled.after = _raises(HubUnavailable("The answer got lost."))
    run_job(job_id, office.desk(troubled))
    assert office.commits(job_id) == 1
    run_job(job_id, office.desk())

    job = office.job(job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
    assert office.commits(job_id) == 1
    assert job.result is not None
    assert job.result["verdict"] == "compatible"


def test_a_job_whose_commit_stands_is_not_called_cancelled(office: Office) -> None:
    job_id = office.submit()
    troubled = _Hub(office.root / "hub")
    troubled.after = _raises(HubUnavailable("The answer got lost."))
    run_job(job_id, office.desk(troubled))

    assert office.store.jobs.cancel(DEFAULT_TENANT, job_id).state is JobState.RETRY_WAIT
    run_job(job_id, office.desk())

    job = office.job(job_id)
    assert job.state is JobState.SUCCEEDED
    assert office.commits(job_id) == 1


def test_a_job_that_came_to_publishing_is_cancelled_once_no_commit_was_found(office: Office) -> None:
    job_id = office.submit()
    troubled = _Hub(office.root / "hub")
    troubled.before = _raises(HubUnavailable("The Hub is away."))
    run_job(job_id, office.desk(troubled))

    office.store.jobs.cancel(DEFAULT_TENANT, job_id)
    run_job(job_id, office.desk())

    assert office.job(job_id).state is JobState.CANCELLED
    assert office.commits(job_id) == 0


@pytest.mark.parametrize("error", [SoftTimeLimitExceeded(), ZeroDivisionError("a bug")])
def test_trouble_after_the_commit_does_not_call_the_job_failed(office: Office, error: Exception) -> None:
    job_id = office.submit()
    troubled = _Hub(office.root / "hub")
    troubled.after = _raises(error)
    run_job(job_id, office.desk(troubled))

    job = office.job(job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    assert office.commits(job_id) == 1


@pytest.mark.parametrize("create_pr", [False, True])
@pytest.mark.parametrize("moment", ["find_commit", "publishing"])
def test_a_worker_that_lost_its_job_and_commits_late_does_not_make_two_commits(
    office: Office, monkeypatch: pytest.MonkeyPatch, moment: str, create_pr: bool
) -> None:
    """`moment`: when the first worker's commit lands, as seen from the second one."""
    job_id = office.submit(output={"repo_id": "acme/out", "create_pr": create_pr})
    late: list[Callable[[], None]] = []
    first = _Hub(office.root / "hub")

    def hang(*args: Any, **kwargs: Any) -> Published:
        late.append(lambda: LocalHub.publish(first, *args, **kwargs) and None)
        raise LeaseLost("the rest of this worker is played by `late`")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # it still has its files
        patch.setattr(first, "publish", hang)
        run_job(job_id, office.desk(first))
        patch.setattr(office.store, "clock", lambda: utcnow() + timedelta(hours=1))
        office.store.outbox.reap()

    second = LocalHub(office.root / "hub")
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
    elsewhere = office.settings.model_copy(update={"home": office.root / "other-machine"})
    run_job(job_id, replace(office.desk(second, owner="worker-2"), settings=elsewhere))

    assert office.job(job_id).state is JobState.SUCCEEDED
    assert office.commits(job_id) == 1
    refs = office.root / "hub" / "acme" / "out" / "refs"
    assert len([path for path in refs.rglob("*") if path.is_file()]) == 1


def test_somebody_elses_commit_in_between_is_not_overwritten(office: Office) -> None:
    job_id = office.submit()
    theirs = office.root / "theirs"
    theirs.mkdir()
    (theirs / "adapter_model.safetensors").write_bytes(b"theirs")

    def interfere() -> None:
        office.hub.publish("acme/out", theirs, message="mine", parent=None, private=True, create_pr=False)

    troubled = _Hub(office.root / "hub")
    troubled.before = interfere
    run_job(job_id, office.desk(troubled))
    assert office.job(job_id).state is JobState.RETRY_WAIT
    run_job(job_id, office.desk())

    job = office.job(job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "output_exists"
    assert office.commits(job_id) == 0


def test_what_a_killed_worker_left_of_this_job_is_removed(office: Office) -> None:
    job_id = office.submit()
    left = office.root / "home" / "work" / f"{job_id}-0" / "adapter"
    left.mkdir(parents=True)
    (left / "adapter_model.safetensors").write_bytes(b"half")
    other = office.root / "home" / "work" / ("0" * 32 + "-1")
    other.mkdir()
    run_job(job_id, office.desk())

    assert list((office.root / "home" / "work").iterdir()) == [other]


def test_a_training_that_nobody_went_on_with_for_weeks_is_removed(office: Office) -> None:
    left = office.root / "home" / "work" / "training" / "cast-0123"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    run_job(office.submit(), office.desk())
    assert not left.exists()


def test_a_disk_without_room_for_the_scratch_folder_is_no_unforeseen_error(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = office.submit()
    original = Path.mkdir

    def mkdir(path: Path, *args: Any, **kwargs: Any) -> None:
        if job_id in path.name:
            raise OSError(errno.ENOSPC, "no space left on device")
        original(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    run_job(job_id, office.desk())

    assert office.job(job_id).state is JobState.RETRY_WAIT


def test_a_heart_beats_on_after_an_odd_error_of_the_database(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = office.store.queue.claim(office.submit(), "worker-1", 5)
    assert claim is not None
    beats: list[bool] = []
    thrice = threading.Event()
    original = office.store.queue.heartbeat

    def heartbeat(*args: Any) -> bool:
        beats.append(len(beats) > 0)
        if len(beats) > 2:
            thrice.set()
        if not beats[-1]:
            raise RuntimeError("odd")
        return original(*args)

    monkeypatch.setattr(office.store.queue, "heartbeat", heartbeat)
    with LeaseHeartbeat(office.store, claim, interval_s=0.02, lease_s=5) as heart:
        assert thrice.wait(30), "a heart that stopped at the odd error"
        heart.check()


def test_an_unforeseen_error_ends_the_job_without_its_cause_in_public(office: Office) -> None:
    job_id = office.submit()
    troubled = _Hub(office.root / "hub")
    troubled.before = _raises(ZeroDivisionError("secret detail"))
    run_job(job_id, office.desk(troubled))

    job = office.job(job_id)
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
    office: Office, trouble: Callable[[], None]
) -> None:
    job_id = office.submit()
    troubled = _Hub(office.root / "hub")
    troubled.before = trouble
    run_job(job_id, office.desk(troubled))

    job = office.job(job_id)
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


def test_a_cancellation_is_heard_between_steps(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = office.submit()

    def cancel() -> None:
        office.store.jobs.cancel(DEFAULT_TENANT, job_id)
        threading.Event().wait(0.3)  # six heartbeats

    _Stepped(monkeypatch, Phase.VERIFYING, cancel)
    run_job(job_id, office.desk())

    job = office.job(job_id)
    assert job.state is JobState.CANCELLED
    assert office.commits(job_id) == 0


def test_a_worker_that_lost_its_lease_drops_what_it_holds(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = office.submit()

    def lose() -> None:
        monkeypatch.setattr(office.store.queue, "heartbeat", _raises_always(LeaseLost("gone")))
        threading.Event().wait(0.3)

    _Stepped(monkeypatch, Phase.VERIFYING, lose)
    run_job(job_id, office.desk())

    assert office.job(job_id).state is JobState.RUNNING  # the sweeper's business now
    assert office.commits(job_id) == 0


def test_a_database_that_is_away_for_a_moment_does_not_hurt_a_job(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = office.submit()
    calls = iter(range(2))
    original = office.store.queue.succeed

    def succeed(*args: Any) -> None:
        if next(calls, None) is not None:
            raise Busy("locked")
        original(*args)

    monkeypatch.setattr(office.store.queue, "succeed", succeed)
    monkeypatch.setattr(office.store.queue, "report_progress", _raises_always(Busy("locked")))
    run_job(job_id, office.desk())

    assert office.job(job_id).state is JobState.SUCCEEDED
    assert office.commits(job_id) == 1


def test_a_database_that_is_away_when_the_bell_rings_leaves_the_job_waiting(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = office.submit()
    with monkeypatch.context() as patch:
        patch.setattr(office.store.queue, "claim", _raises_always(Busy("locked")))
        run_job(job_id, office.desk())

    assert office.job(job_id).state is JobState.QUEUED


def _raises_always(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def test_re_converting_the_same_adapter_adds_a_commit_to_its_output(office: Office) -> None:
    first, second = office.submit(), office.submit(output={"repo_id": "acme/out", "dtype": "float32"})
    run_job(first, office.desk())
    run_job(second, office.desk())

    assert office.job(second).state is JobState.SUCCEEDED
    assert office.commits(first) == office.commits(second) == 1
