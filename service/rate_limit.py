"""Rate limits per tenant, as token buckets: in Redis if there is one, so that all API processes count
together, else in this process.

A bucket holds one minute's worth of requests and refills continuously. While Redis is unavailable, each
process counts by itself: a limit that is somewhat too generous beats an outage.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from rebase.logging import get_logger

log = get_logger("rates")

WINDOW_S = 60
_MAX_BUCKETS = 10_000
_TIMEOUT_S = 0.25
_COOLDOWN_S = 5.0

# Redis runs a script atomically, by its own clock. Tokens are floats; a key expires once its bucket is full.
_TAKE_SCRIPT = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local most, rate = tonumber(ARGV[1]), tonumber(ARGV[1]) / tonumber(ARGV[2])
local kept = redis.call('HMGET', KEYS[1], 'left', 'at')
local left = math.min(most, (tonumber(kept[1]) or most) + (now - (tonumber(kept[2]) or now)) * rate)
local allowed = 0
if left >= 1 then
  allowed = 1
  left = left - 1
end
redis.call('HSET', KEYS[1], 'left', tostring(left), 'at', tostring(now))
redis.call('EXPIRE', KEYS[1], tonumber(ARGV[2]) + 1)
return {allowed, tostring(left)}
"""


@dataclass(frozen=True, slots=True)
class RateLimitResult:
    """The result for one request: `remaining` of `limit` tokens are left."""

    allowed: bool
    remaining: float
    limit: int

    @property
    def retry_after_s(self) -> int:
        """Whole seconds until the next token."""
        return max(1, math.ceil((1 - self.remaining) * WINDOW_S / self.limit))

    @property
    def reset_s(self) -> int:
        """Whole seconds until the bucket is full."""
        return math.ceil((self.limit - self.remaining) * WINDOW_S / self.limit)


class RateLimiter(Protocol):
    """Counts requests."""

    async def take(self, tenant: str, limit: int) -> RateLimitResult:
        """Take one of `limit` tokens per minute."""

    async def close(self) -> None:
        """Release connections."""


class LocalRateLimiter:
    """Buckets in this process."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def take(self, tenant: str, limit: int) -> RateLimitResult:
        """Take from the tenant's bucket; buckets unused for long are full and are discarded."""
        now = self._monotonic()
        remaining, updated_at = self._buckets.pop(tenant, (float(limit), now))
        remaining = min(float(limit), remaining + (now - updated_at) * limit / WINDOW_S)
        allowed = remaining >= 1
        remaining -= allowed
        self._buckets[tenant] = (remaining, now)
        while len(self._buckets) > _MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return RateLimitResult(allowed, remaining, limit)

    async def close(self) -> None:
        """Does nothing: there are no connections."""


class RedisRateLimiter:
    """Buckets shared by all API processes."""

    def __init__(self, url: str, *, prefix: str = "rebase:rates") -> None:
        self._redis = Redis.from_url(
            url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, decode_responses=True
        )
        self._take_script = self._redis.register_script(_TAKE_SCRIPT)
        self._prefix = prefix
        self._fallback = LocalRateLimiter()
        self._retry_redis_at = 0.0

    async def take(self, tenant: str, limit: int) -> RateLimitResult:
        """Take from the shared bucket, or from this process's while Redis is unavailable."""
        if time.monotonic() >= self._retry_redis_at:
            try:
                reply = await self._take_script(keys=[f"{self._prefix}:{tenant}"], args=[limit, WINDOW_S])
            except (RedisError, OSError, TimeoutError) as exc:
                self._retry_redis_at = time.monotonic() + _COOLDOWN_S
                log.warning("rates_not_shared", error=type(exc).__name__)
            else:
                allowed, remaining = cast(tuple[Any, Any], reply)
                return RateLimitResult(bool(int(allowed)), float(remaining), limit)
        return await self._fallback.take(tenant, limit)

    async def close(self) -> None:
        """Close the connection pool."""
        await self._redis.aclose()


class Throttle:
    """Allows each key once per `interval_s` seconds."""

    def __init__(self, interval_s: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._monotonic = monotonic
        self._last_allowed: OrderedDict[str, float] = OrderedDict()

    def allow(self, key: str) -> bool:
        """Whether the key is allowed now; if so, not again until the interval is over."""
        now = self._monotonic()
        if now - self._last_allowed.get(key, float("-inf")) < self._interval_s:
            return False
        self._last_allowed[key] = now
        self._last_allowed.move_to_end(key)
        while len(self._last_allowed) > _MAX_BUCKETS:
            self._last_allowed.popitem(last=False)
        return True


def build_rate_limit_headers(result: RateLimitResult) -> Mapping[str, str]:
    """The headers `RateLimit` and `RateLimit-Policy` of draft-ietf-httpapi-ratelimit-headers."""
    return {
        "RateLimit-Policy": f'"tenant";q={result.limit};w={WINDOW_S}',
        "RateLimit": f'"tenant";r={max(0, math.floor(result.remaining))};t={result.reset_s}',
    }
