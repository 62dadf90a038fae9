"""Both tiers against a real disk and a real Redis: hits, bounds, and every kind of trouble as a miss."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest
import redis
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rebase.cache.factor_cache import FactorCache
from rebase.cache.keys import FactorKey, PairKey
from rebase.lora.low_rank import Factors
from support.cache_processes import KEY, factors, same
from support.redis_server import a_prefix, a_redis, own_redis

BIG = 10**9
PAIR = PairKey("acme/old", "a" * 40, "0.q_proj", "acme/new", "b" * 40, "1.q_proj", "map v1", "c" * 64)


def key(number: int) -> FactorKey:
    return FactorKey("acme/base", "a" * 40, f"w{number}", 4, 1)


def never() -> NoReturn:
    raise AssertionError("should have come from the cache")


def put(cache: FactorCache, number: int) -> None:
    cache.get_or_compute(key(number), factors)


def has(cache: FactorCache, number: int) -> bool:
    return key(number) in {e.key for e in cache.list_entries()}


def only_file(folder: Path) -> Path:
    (path,) = folder.glob("entries/*/*/*.safetensors")
    return path


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with a_redis() as url:
        yield url


@pytest.fixture
def prefix(redis_url: str) -> Iterator[str]:
    with a_prefix(redis_url) as name:
        yield name


def test_the_second_request_is_served_from_disk_bit_for_bit(tmp_path: Path) -> None:
    cache = FactorCache(tmp_path, BIG)
    fresh = cache.get_or_compute(KEY, factors)
    assert same(fresh, FactorCache(tmp_path, BIG).get_or_compute(KEY, never))
    assert same(fresh, cache.get_or_compute(KEY, never))
    assert (cache.stats.computed, cache.stats.disk_hits) == (1, 1)


def test_what_compute_raises_reaches_the_caller_and_nothing_is_kept(tmp_path: Path) -> None:
    cache = FactorCache(tmp_path, BIG)
    with pytest.raises(ZeroDivisionError):
        cache.get_or_compute(KEY, lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert cache.list_entries() == []
    assert same(cache.get_or_compute(KEY, factors), factors())


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_damaged_file_is_a_miss_and_is_replaced(tmp_path: Path, where: float, flip: int) -> None:
    cache = FactorCache(tmp_path, BIG)
    cache.get_or_compute(KEY, factors)
    path = only_file(tmp_path)
    good = path.read_bytes()
    at = int(where * len(good))
    path.write_bytes(good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :])
    computed = cache.stats.computed
    assert same(cache.get_or_compute(KEY, factors), factors())
    assert cache.stats.computed == computed + 1
    assert path.read_bytes() == good


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"not a cache entry at all"])
def test_a_foreign_file_in_an_entrys_place_is_a_miss(tmp_path: Path, content: bytes) -> None:
    cache = FactorCache(tmp_path, BIG)
    cache.get_or_compute(KEY, factors)
    only_file(tmp_path).write_bytes(content)
    assert [e.key for e in cache.list_entries()] == [None]
    assert same(cache.get_or_compute(KEY, factors), factors())
    assert [e.key for e in cache.list_entries()] == [KEY]


def test_a_folder_in_an_entrys_place_does_no_harm(tmp_path: Path) -> None:
    FactorCache(tmp_path, BIG).get_or_compute(KEY, factors)
    path = only_file(tmp_path)
    path.unlink()
    path.mkdir()
    assert same(FactorCache(tmp_path, BIG).get_or_compute(KEY, factors), factors())


def test_the_least_recently_used_entries_go_first(tmp_path: Path) -> None:
    size = FactorCache(tmp_path / "probe", BIG)
    put(size, 0)
    one = size.list_entries()[0].bytes
    cache = FactorCache(tmp_path / "real", one * 10)
    for number in range(10):
        put(cache, number)
        time.sleep(0.005)
    cache.get_or_compute(key(0), never)
    put(cache, 10)
    assert has(cache, 0), "used a moment ago"
    assert has(cache, 10)
    assert not has(cache, 1)
    assert sum(e.bytes for e in cache.list_entries()) <= one * 10


def test_many_writers_together_stay_within_the_bound(tmp_path: Path) -> None:
    probe = FactorCache(tmp_path / "probe", BIG)
    put(probe, 0)
    bound = probe.list_entries()[0].bytes * 8 + 100
    caches = [FactorCache(tmp_path / "real", bound) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: put(caches[n % 4], n), range(60)))
    total = sum(e.bytes for e in caches[0].list_entries())
    assert 0 < total <= bound


@pytest.mark.parametrize("content", [None, "", "-5", "12 apples", "99999999999"])
def test_a_lost_or_wrong_count_of_bytes_is_put_right(tmp_path: Path, content: str | None) -> None:
    probe = FactorCache(tmp_path / "probe", BIG)
    put(probe, 0)
    bound = probe.list_entries()[0].bytes * 3
    cache = FactorCache(tmp_path / "real", bound)
    for number in range(2):
        put(cache, number)
    usage = tmp_path / "real" / "usage"
    usage.unlink()
    if content is not None:
        usage.write_text(content)
    for number in range(2, 9):
        put(cache, number)
    assert has(cache, 8)
    assert sum(e.bytes for e in cache.list_entries()) <= bound


def test_an_entry_larger_than_the_whole_cache_is_not_kept(tmp_path: Path) -> None:
    cache = FactorCache(tmp_path, 100)
    assert same(cache.get_or_compute(KEY, factors), factors())
    assert cache.list_entries() == []


def test_a_cache_of_size_zero_writes_nothing_at_all(tmp_path: Path) -> None:
    cache = FactorCache(tmp_path / "cache", 0)
    assert same(cache.get_or_compute(KEY, factors), factors())
    assert not (tmp_path / "cache").exists()


def test_prune_removes_down_to_the_size_asked_for(tmp_path: Path) -> None:
    cache = FactorCache(tmp_path, BIG)
    for number in range(5):
        put(cache, number)
        time.sleep(0.005)
    one = cache.list_entries()[0].bytes
    pruned = cache.prune(2 * one)
    assert (pruned.entries, pruned.bytes) == (3, 3 * one)
    assert [e.key for e in cache.list_entries()] == [key(3), key(4)]
    assert cache.prune().entries == 2
    assert cache.list_entries() == []


def test_the_remains_of_a_writer_that_died_are_swept_away(tmp_path: Path) -> None:
    cache = FactorCache(tmp_path, BIG)
    cache.get_or_compute(KEY, factors)
    old, new = (only_file(tmp_path).parent / f".x.safetensors.{n}.part" for n in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    cache.prune(BIG)
    assert not old.exists()
    assert new.exists(), "somebody may be writing it"


def test_no_lock_file_stays_behind(tmp_path: Path) -> None:
    cache = FactorCache(tmp_path, BIG)
    put(cache, 1)
    assert list((tmp_path / "locks").iterdir()) == []


def test_a_cache_folder_that_cannot_be_made_costs_nothing_but_the_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = FactorCache(tmp_path / "file" / "cache", BIG)
    assert same(cache.get_or_compute(KEY, factors), factors())
    assert same(cache.get_or_compute(KEY, factors), factors())
    assert cache.stats.computed == 2
    assert cache.list_entries() == []


def test_a_disk_that_takes_no_more_costs_nothing_but_the_cache(tmp_path: Path) -> None:
    cache, large = FactorCache(tmp_path, BIG), factors(4, 100_000, 5)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))  # the kernel lets no file grow past 1 MiB
    try:
        assert same(cache.get_or_compute(KEY, lambda: large), large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert same(cache.get_or_compute(KEY, lambda: large), large)
    assert cache.list_entries() == [], "left alone for a while after the trouble"
    assert list(tmp_path.glob("entries/*/*/*")) == [], "nothing half written stays"
    assert same(FactorCache(tmp_path, BIG).get_or_compute(KEY, lambda: large), large)
    assert len(cache.list_entries()) == 1


def test_both_tiers_hold_the_same_bytes(tmp_path: Path, redis_url: str, prefix: str) -> None:
    FactorCache(tmp_path, BIG, redis_url, redis_prefix=prefix).get_or_compute(KEY, factors)
    with redis.Redis.from_url(redis_url) as client:
        assert client.get(f"{prefix}:entry:{KEY.digest}") == only_file(tmp_path).read_bytes()
        assert not client.exists(f"{prefix}:lock:{KEY.digest}")


def test_another_machine_is_served_from_redis_and_fills_its_disk(
    tmp_path: Path, redis_url: str, prefix: str
) -> None:
    fresh = FactorCache(tmp_path / "a", BIG, redis_url, redis_prefix=prefix).get_or_compute(KEY, factors)
    other = FactorCache(tmp_path / "b", BIG, redis_url, redis_prefix=prefix)
    assert same(other.get_or_compute(KEY, never), fresh)
    assert (other.stats.redis_hits, other.stats.disk_hits, other.stats.computed) == (1, 0, 0)
    assert same(other.get_or_compute(KEY, never), fresh)
    assert other.stats.disk_hits == 1


def test_entries_in_redis_have_a_time_to_live(tmp_path: Path, redis_url: str, prefix: str) -> None:
    FactorCache(tmp_path, BIG, redis_url, ttl_s=100, redis_prefix=prefix).get_or_compute(KEY, factors)
    with redis.Redis.from_url(redis_url) as client:
        assert 90 < client.ttl(f"{prefix}:entry:{KEY.digest}") <= 100


def test_an_entry_over_the_redis_bound_stays_on_disk(tmp_path: Path, redis_url: str, prefix: str) -> None:
    cache = FactorCache(tmp_path, BIG, redis_url, max_entry_bytes=100, redis_prefix=prefix)
    cache.get_or_compute(KEY, factors)
    with redis.Redis.from_url(redis_url) as client:
        assert not client.exists(f"{prefix}:entry:{KEY.digest}")
    assert len(cache.list_entries()) == 1


@pytest.mark.parametrize("content", [b"", b"noise", b"\xff" * 400])
def test_a_damaged_value_in_redis_is_a_miss_and_is_replaced(
    tmp_path: Path, redis_url: str, prefix: str, content: bytes
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set(f"{prefix}:entry:{KEY.digest}", content)
        cache = FactorCache(tmp_path, BIG, redis_url, redis_prefix=prefix)
        assert same(cache.get_or_compute(KEY, factors), factors())
        assert client.get(f"{prefix}:entry:{KEY.digest}") == only_file(tmp_path).read_bytes()


def test_a_key_of_another_type_in_redis_is_a_miss(tmp_path: Path, redis_url: str, prefix: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.rpush(f"{prefix}:entry:{KEY.digest}", "a list")
    cache = FactorCache(tmp_path, BIG, redis_url, redis_prefix=prefix)
    assert same(cache.get_or_compute(KEY, factors), factors())


def rotation() -> dict[str, Tensor]:
    return {"rotation": torch.arange(6.0).reshape(2, 3)}


def test_a_pairs_tensors_go_through_the_same_tiers(tmp_path: Path, redis_url: str, prefix: str) -> None:
    one = FactorCache(tmp_path / "a", BIG, redis_url, redis_prefix=prefix)
    odd = {"rotation": rotation()["rotation"].double().T.contiguous().T}
    fresh = one.get_or_compute_tensors(PAIR, lambda: odd)
    other = FactorCache(tmp_path / "b", BIG, redis_url, redis_prefix=prefix)
    again = [other.get_or_compute_tensors(PAIR, never) for _ in range(2)]
    for found in (fresh, *again):
        assert found.keys() == {"rotation"}
        assert torch.equal(found["rotation"], rotation()["rotation"])
        assert (found["rotation"].dtype, found["rotation"].stride()) == (torch.float32, (3, 1))
    assert (other.stats.redis_hits, other.stats.disk_hits, other.stats.computed) == (1, 1, 0)


def test_a_damaged_pair_entry_is_a_miss_in_either_tier(tmp_path: Path, redis_url: str, prefix: str) -> None:
    cache = FactorCache(tmp_path, BIG, redis_url, redis_prefix=prefix)
    cache.get_or_compute_tensors(PAIR, rotation)
    good = only_file(tmp_path).read_bytes()
    only_file(tmp_path).write_bytes(good[:-1])
    with redis.Redis.from_url(redis_url) as client:
        client.set(f"{prefix}:entry:{PAIR.digest}", good[:-1] + b"x")
        assert torch.equal(cache.get_or_compute_tensors(PAIR, rotation)["rotation"], rotation()["rotation"])
        assert cache.stats.computed == 2
        assert only_file(tmp_path).read_bytes() == client.get(f"{prefix}:entry:{PAIR.digest}") == good


def test_both_kinds_are_listed_by_their_keys(tmp_path: Path) -> None:
    cache = FactorCache(tmp_path, BIG)
    cache.get_or_compute(KEY, factors)
    cache.get_or_compute_tensors(PAIR, rotation)
    assert {entry.key for entry in cache.list_entries()} == {KEY, PAIR}


def test_redis_works_without_a_disk_tier(tmp_path: Path, redis_url: str, prefix: str) -> None:
    fresh = FactorCache(tmp_path, 0, redis_url, redis_prefix=prefix).get_or_compute(KEY, factors)
    assert same(FactorCache(tmp_path, 0, redis_url, redis_prefix=prefix).get_or_compute(KEY, never), fresh)


def test_a_redis_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"redis://:secret@127.0.0.1:{reserved.getsockname()[1]}/0"
        assert same(FactorCache(tmp_path, BIG, url).get_or_compute(KEY, factors), factors())


def test_a_redis_that_dies_on_the_way_is_no_error(tmp_path: Path) -> None:
    with own_redis() as url:
        cache = FactorCache(tmp_path, BIG, url)
        put(cache, 1)

        def compute() -> Factors:
            with redis.Redis.from_url(url) as client:
                client.shutdown(nosave=True)
            return factors()

        assert same(cache.get_or_compute(key(2), compute), factors())
        put(cache, 3)
        assert {e.key for e in cache.list_entries()} == {key(1), key(2), key(3)}


def test_a_silent_redis_costs_one_timeout_and_not_one_per_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://:secret@127.0.0.1:{silent.getsockname()[1]}/0"
        cache = FactorCache(tmp_path, BIG, url, redis_timeout_s=0.3)
        began = time.monotonic()
        for number in range(20):
            put(cache, number)
        assert time.monotonic() - began < 3.0
    logged = capsys.readouterr().out
    assert logged.count("cache_tier_off") <= 1, "said once"
    assert "secret" not in logged
