"""Nobody computes what somebody else is computing: between threads, processes and machines, and past dead
holders.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import redis

from rebase.cache.factor_cache import FactorCache
from rebase.cache.keys import FactorKey
from rebase.lora.low_rank import Factors
from support.cache_processes import KEY, Place, factors, peak_of_reading, processes, same, want
from support.redis_server import a_prefix, a_redis

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with a_redis() as url:
        yield url


@pytest.fixture
def prefix(redis_url: str) -> Iterator[str]:
    with a_prefix(redis_url) as name:
        yield name


@pytest.fixture
def start() -> Iterator[Callable[[Place, float], BaseProcess]]:
    """Start processes that want the factors; whatever is left of them is killed at the end."""
    started: list[BaseProcess] = []

    def start_one(place: Place, seconds: float) -> BaseProcess:
        process = processes.Process(target=want, args=(place, seconds))
        process.start()
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.join()


def here(tmp_path: Path, machine: str = "one", **more: object) -> Place:
    (tmp_path / "notes").mkdir(exist_ok=True)
    return Place(tmp_path / machine, tmp_path / "notes", **more)  # type: ignore[arg-type]


def until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.02)


def finish(*running: BaseProcess) -> None:
    for process in running:
        process.join(PATIENCE_S)
        assert process.exitcode == 0


def test_threads_that_want_the_same_factor_compute_it_once(tmp_path: Path) -> None:
    cache, calls = FactorCache(tmp_path, 10**9), []

    def compute() -> Factors:
        calls.append(threading.get_ident())
        time.sleep(0.2)
        return factors()

    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(lambda _: cache.get_or_compute(KEY, compute), range(6)))
    assert len(calls) == 1
    assert all(same(g, factors()) for g in got)


def test_processes_that_want_the_same_factor_compute_it_once(
    tmp_path: Path, start: Callable[[Place, float], BaseProcess]
) -> None:
    place = here(tmp_path)
    finish(*[start(place, 0.5) for _ in range(5)])
    assert len(place.noted("computing")) == 1
    assert len(place.noted("served")) == 5


def test_machines_that_share_a_redis_compute_it_once(
    tmp_path: Path, redis_url: str, prefix: str, start: Callable[[Place, float], BaseProcess]
) -> None:
    places = [here(tmp_path, m, redis_url=redis_url, prefix=prefix) for m in ("one", "two")]
    finish(*[start(places[n % 2], 0.7) for n in range(4)])
    assert len(places[0].noted("computing")) == 1
    assert len(places[0].noted("served")) == 4


def test_a_process_killed_while_computing_is_succeeded_at_once(
    tmp_path: Path, start: Callable[[Place, float], BaseProcess]
) -> None:
    place = here(tmp_path)
    holder = start(place, PATIENCE_S)
    until(lambda: place.noted("computing"))
    heir = start(place, 0.0)
    time.sleep(0.3)
    assert place.noted("served") == []
    killed = time.monotonic()
    os.kill(holder.pid or 0, signal.SIGKILL)
    finish(heir)
    assert time.monotonic() - killed < 5
    assert place.noted("served") == [heir.pid]


def test_a_machine_that_dies_while_computing_is_succeeded_after_its_lease(
    tmp_path: Path, redis_url: str, prefix: str, start: Callable[[Place, float], BaseProcess]
) -> None:
    one, two = (here(tmp_path, m, redis_url=redis_url, prefix=prefix, lease_s=1.0) for m in ("one", "two"))
    holder = start(one, PATIENCE_S)
    until(lambda: one.noted("computing"))
    heir = start(two, 0.0)
    time.sleep(2.0)
    assert two.noted("served") == [], "the lease is renewed for as long as the holder lives"
    killed = time.monotonic()
    os.kill(holder.pid or 0, signal.SIGKILL)
    finish(heir)
    assert time.monotonic() - killed < 6
    assert two.noted("served") == [heir.pid]


def test_results_too_large_for_redis_are_not_waited_for_in_a_row(
    tmp_path: Path, redis_url: str, prefix: str
) -> None:
    caches = [
        FactorCache(tmp_path / str(n), 10**9, redis_url, max_entry_bytes=10, redis_prefix=prefix)
        for n in range(4)
    ]

    def compute() -> Factors:
        time.sleep(0.5)
        return factors()

    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda c: c.get_or_compute(KEY, compute), caches))
    assert time.monotonic() - began < 1.8, "one first, then all others side by side"


def test_a_computation_that_fails_lets_the_next_in_line_try(
    tmp_path: Path, redis_url: str, prefix: str
) -> None:
    cache = FactorCache(tmp_path, 10**9, redis_url, redis_prefix=prefix)
    began = threading.Event()

    def fail() -> Factors:
        began.set()
        time.sleep(0.2)
        raise RuntimeError("no luck")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get_or_compute, KEY, fail)
        began.wait(10)
        second = pool.submit(cache.get_or_compute, KEY, factors)
        assert isinstance(first.exception(30), RuntimeError)
        assert same(second.result(30), factors())


def test_a_lock_that_passed_to_somebody_else_is_left_alone(
    tmp_path: Path, redis_url: str, prefix: str
) -> None:
    cache = FactorCache(tmp_path, 10**9, redis_url, redis_prefix=prefix)
    name = f"{prefix}:lock:{KEY.digest}"
    with redis.Redis.from_url(redis_url) as client:

        def compute() -> Factors:
            client.set(name, "somebody else", px=60_000)
            return factors()

        cache.get_or_compute(KEY, compute)
        assert client.get(name) == b"somebody else"


def test_nobody_waits_for_ever(tmp_path: Path) -> None:
    release = threading.Event()

    def stuck() -> Factors:
        release.wait(PATIENCE_S)
        return factors()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(FactorCache(tmp_path, 10**9).get_or_compute, KEY, stuck)
        until(lambda: list(tmp_path.glob("locks/*")))
        impatient = FactorCache(tmp_path, 10**9, wait_s=0.3)
        assert same(impatient.get_or_compute(KEY, factors), factors())
        release.set()


def test_reading_an_entry_holds_it_in_memory_once(tmp_path: Path) -> None:
    place = here(tmp_path)
    key = FactorKey("acme/base", "a" * 40, "large", 256, 1)
    place.cache().get_or_compute(key, lambda: factors(256, 20_000, 20_000))
    size_mib = max(e.bytes for e in place.cache().list_entries()) // 2**20
    reader = processes.Process(target=peak_of_reading, args=(place, key))
    reader.start()
    finish(reader)
    grown = int((place.notes / "grown").read_text())
    assert size_mib <= grown + 2 < 1.4 * size_mib, f"{size_mib} MiB on disk, {grown} MiB in memory"
