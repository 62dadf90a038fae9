"""Token buckets: refilled evenly, and shared by all API processes over a real Redis."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

import migrations
from rebase.store import api_keys as keys
from rebase.store.database import Database
from rebase.store.store import Store
from rebase.store.tenants import change_limits
from service.rate_limit import LocalRateLimiter, RedisRateLimiter, Throttle
from support.redis_server import a_prefix, a_redis, own_redis
from support.running_service import free_port, service_process
from support.tenants import bearer


class _Hand:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_holds_a_minutes_worth_and_refills_evenly() -> None:
    hand = _Hand()
    rates = LocalRateLimiter(hand)

    async def take(count: int) -> int:
        return sum([(await rates.take("acme", 60)).allowed for _ in range(count)])

    assert asyncio.run(take(100)) == 60
    hand.now += 5
    assert asyncio.run(take(100)) == 5
    hand.now += 3600
    assert asyncio.run(take(100)) == 60


def test_a_refusal_says_when_there_is_a_token_again() -> None:
    async def run() -> None:
        rates = LocalRateLimiter(_Hand())
        first, second = [await rates.take("acme", 1) for _ in range(2)]
        assert (first.allowed, second.allowed) == (True, False)
        assert second.retry_after_s == 60
        assert first.reset_s == 60

    asyncio.run(run())


def test_two_counters_on_one_redis_share_a_bucket_and_tenants_do_not() -> None:
    async def run(url: str, prefix: str) -> None:
        one, two = (RedisRateLimiter(url, prefix=prefix) for _ in range(2))
        taken = [await rates.take("acme", 5) for rates in (one, two) * 3]
        assert [each.allowed for each in taken] == [True] * 5 + [False]
        assert (await two.take("rival", 5)).allowed
        assert 10 <= taken[-1].retry_after_s <= 12
        await one.close()
        await two.close()

    with a_redis() as url, a_prefix(url) as prefix:
        asyncio.run(run(url, prefix))


def test_while_redis_is_away_each_process_counts_for_itself() -> None:
    async def run() -> None:
        rates = RedisRateLimiter("redis://127.0.0.1:1/0")
        taken = [await rates.take("acme", 2) for _ in range(3)]
        assert [each.allowed for each in taken] == [True, True, False]
        await rates.close()

    asyncio.run(run())


def test_what_is_seldom_is_due_once_in_its_time() -> None:
    hand = _Hand()
    seldom = Throttle(60, hand)
    assert [seldom.allow("a"), seldom.allow("a"), seldom.allow("b")] == [True, False, True]
    hand.now += 60
    assert seldom.allow("a")


@pytest.mark.e2e
def test_two_api_processes_let_a_tenant_through_as_often_as_one_would(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'rebase.db'}"
    migrations.upgrade(url)
    db = Database.open(url)
    store = Store(db)
    key = keys.create_key(store, "acme", "key")
    change_limits(store, "acme", {"requests_per_minute": 20}, None)
    db.close()
    homes = [tmp_path / name for name in ("one", "two")]
    ports = [free_port(), free_port()]
    with ExitStack() as stack:
        redis = stack.enter_context(own_redis())
        settings = {
            "REBASE_AUTH": "keys",
            "REBASE_REDIS_URL": redis,
            "REBASE_DATABASE_URL": url,
            "PYTHONPATH": str(Path.cwd()),
        }
        for home, port in zip(homes, ports, strict=True):
            home.mkdir()
            stack.enter_context(service_process(home, port, **settings))
        answers = [
            httpx2.get(f"http://127.0.0.1:{ports[number % 2]}/jobs", headers=bearer(key), timeout=30)
            for number in range(30)
        ]
    allowed = [answer.status_code for answer in answers].count(200)

    assert {answer.status_code for answer in answers} == {200, 429}
    assert 20 <= allowed <= 24, "the bucket refills by one in three seconds"
