"""The Redis tier: the same bytes as on disk, shared between machines, with a TTL and a size limit.

Redis is optional here: any error is a miss, and a circuit breaker keeps a dead server from costing a timeout
per tensor. The same server may also be the broker: run it with `volatile-lru`, which evicts only keys with a
TTL and therefore never a queue.
"""

from __future__ import annotations

from typing import cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from rebase.cache.circuit_breaker import CircuitBreaker

_REDIS_ERRORS = (redis.RedisError, OSError)
_NOT_SHARED = b"not-shared"
_NOT_SHARED_TTL_S = 60.0

# Both compare the token first, so that a lease now held by another process is left alone.
_RENEW_SCRIPT = """
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end
return 0
"""
_RELEASE_SCRIPT = """
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end
return 0
"""


class RedisTier:
    """Stores bytes by digest, and the lock keys that belong to them."""

    def __init__(
        self,
        url: str,
        *,
        ttl_s: int,
        max_entry_bytes: int,
        prefix: str = "rebase:factors",
        timeout_s: float,
        cool_off_s: float = 30.0,
    ) -> None:
        self._client = redis.Redis.from_url(
            url, socket_connect_timeout=1.0, socket_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
        )
        self._ttl_s = ttl_s
        self._max_entry_bytes = max_entry_bytes
        self._prefix = prefix
        self._breaker = CircuitBreaker("redis", cool_off_s)
        self._renew_script = self._client.register_script(_RENEW_SCRIPT)
        self._release_script = self._client.register_script(_RELEASE_SCRIPT)

    @property
    def available(self) -> bool:
        """False while the circuit breaker is open after a failure."""
        return not self._breaker.is_open

    def fits(self, size: int) -> bool:
        """Whether an entry of this many bytes may be stored in Redis."""
        return size <= self._max_entry_bytes

    def get(self, digest: str) -> bytes | None:
        """The entry's bytes, undecoded."""
        with self._breaker.guard(*_REDIS_ERRORS):
            return (
                cast("bytes | None", self._client.get(self._make_entry_key(digest)))
                if self.available
                else None
            )
        return None

    def has(self, digest: str) -> bool:
        """Whether the entry exists, without transferring its bytes."""
        with self._breaker.guard(*_REDIS_ERRORS):
            return self.available and bool(self._client.exists(self._make_entry_key(digest)))
        return False

    def put(self, digest: str, entry: bytes) -> None:
        """Store an entry that `fits`."""
        with self._breaker.guard(*_REDIS_ERRORS):
            if self.available:
                self._client.set(self._make_entry_key(digest), entry, ex=self._ttl_s)

    def remove(self, digest: str) -> None:
        """Delete a corrupt entry."""
        with self._breaker.guard(*_REDIS_ERRORS):
            if self.available:
                self._client.delete(self._make_entry_key(digest))

    def lock(self, digest: str, token: str, lease_s: float) -> bool:
        """Acquire the lock of an entry if it is free."""
        with self._breaker.guard(*_REDIS_ERRORS):
            return self.available and bool(
                self._client.set(self._make_lock_key(digest), token, nx=True, px=int(lease_s * 1000))
            )
        return False

    def renew(self, digest: str, token: str, lease_s: float) -> None:
        """Extend our lease; does nothing if another process now holds the lock."""
        with self._breaker.guard(*_REDIS_ERRORS):
            if self.available:
                self._renew_script(keys=[self._make_lock_key(digest)], args=[token, int(lease_s * 1000)])

    def unlock(self, digest: str, token: str) -> None:
        """Release the lock; does nothing if another process now holds it."""
        with self._breaker.guard(*_REDIS_ERRORS):
            if self.available:
                self._release_script(keys=[self._make_lock_key(digest)], args=[token])

    def mark_not_shared(self, digest: str) -> None:
        """Replace the lock with a marker for a minute: the result exists but is not shared through Redis."""
        with self._breaker.guard(*_REDIS_ERRORS):
            if self.available:
                self._client.set(self._make_lock_key(digest), _NOT_SHARED, px=int(_NOT_SHARED_TTL_S * 1000))

    def is_not_shared(self, digest: str) -> bool:
        """Whether the marker of `mark_not_shared` is set."""
        with self._breaker.guard(*_REDIS_ERRORS):
            return self.available and self._client.get(self._make_lock_key(digest)) == _NOT_SHARED
        return False

    def _make_entry_key(self, digest: str) -> str:
        return f"{self._prefix}:entry:{digest}"

    def _make_lock_key(self, digest: str) -> str:
        return f"{self._prefix}:lock:{digest}"
