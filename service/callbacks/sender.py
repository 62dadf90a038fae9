"""One attempt: resolve once, check every address, connect to a checked address with the name's TLS identity.

Nothing is resolved again between the check and the connection, which defeats DNS rebinding. Proxies from the
environment are not used: they would resolve the name themselves. Redirects are not followed. Of the response
only the status is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import httpx2

from rebase.errors import SettingsInvalid
from rebase.logging import get_logger
from rebase.schemas.callback_policy import Allowlist, compute_next_delay
from rebase.schemas.callbacks import DeliveryState, Endpoint, format_host, parse_callback_url
from rebase.store.deliveries import Settlement
from rebase.store.repository import utcnow
from service.callbacks.ssrf_guard import endpoint_blocked_reason, resolved_blocked_reason


def make_tls_context(extra_ca_file: Path | None) -> ssl.SSLContext:
    """Trust the system's certificate authorities and those in a file. Raises SettingsInvalid."""
    context = ssl.create_default_context()
    if extra_ca_file is not None:
        try:
            context.load_verify_locations(extra_ca_file)
        except (OSError, ssl.SSLError) as exc:
            raise SettingsInvalid(
                "The file in REBASE_CALLBACK_CA_FILE cannot be read as PEM certificates.",
                hint="It must contain one or more certificates in PEM format.",
            ) from exc
    return context


class FailureReason(StrEnum):
    """Why an attempt does not count as delivered, as recorded in the log."""

    REFUSED_URL = "refused_url"  # the deployment's rules have changed since the job was submitted
    REFUSED_ADDRESS = "refused_address"
    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    PROTOCOL = "protocol"
    REDIRECT = "redirect"
    STATUS = "status"
    GONE = "gone"
    NO_SECRET = "no_secret"  # noqa: S105  (not a secret)
    COURIER_LOST = "courier_lost"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """The receiver's status, or the reason why there is none; both for a status other than 2xx."""

    status: int | None = None
    reason: FailureReason | None = None
    detail: str | None = None
    retry_after_s: float | None = None  # Retry-After
    duration_ms: int = 0


def classify_status(status: int, retry_after: str | None, now: datetime) -> AttemptResult:
    """The result for a status: 2xx is delivered, 410 stops deliveries, all else (redirects too) failed."""
    if 200 <= status < 300:
        return AttemptResult(status)
    if 300 <= status < 400:
        return AttemptResult(status, FailureReason.REDIRECT, "Redirects are not followed; use the final URL.")
    if status == 410:
        return AttemptResult(
            status,
            FailureReason.GONE,
            ("The receiver responded 410 Gone; nothing more is sent unless the delivery is replayed."),
        )
    retry_after_s = parse_retry_after(retry_after, now) if status in {429, 503} else None
    return AttemptResult(
        status, FailureReason.STATUS, (f"The receiver responded with status {status}."), retry_after_s
    )


def parse_retry_after(text: str | None, now: datetime) -> float | None:
    """The seconds of a Retry-After header, given as seconds or as a date; None if it is unusable."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        retry_at = parsedate_to_datetime(text)
        return max(0.0, (retry_at - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def decide_settlement(
    result: AttemptResult, failures: int, delays: tuple[float, ...], seed: str, now: datetime
) -> Settlement:
    """The delivery's next state. `failures`: failed attempts since the last replay, before this one."""
    if result.reason is None:
        return Settlement(DeliveryState.DELIVERED)
    if result.reason is FailureReason.GONE:
        return Settlement(DeliveryState.STOPPED)
    delay = compute_next_delay(delays, failures + 1, seed, result.retry_after_s)
    if delay is None:
        return Settlement(DeliveryState.FAILED)
    return Settlement(DeliveryState.PENDING, now + timedelta(seconds=delay))


class Resolver(Protocol):
    """Resolves a name to addresses as text, best first. Raises OSError if there are none."""

    async def __call__(self, host: str, port: int, /) -> Sequence[str]: ...


class SystemResolver:
    """getaddrinfo, with one thread per concurrent attempt."""

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="dns")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """The addresses without duplicates. Raises OSError."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, _look_up_addresses, host, port)

    def close(self) -> None:
        """Release the threads; one that is still resolving ends by itself."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _look_up_addresses(host: str, port: int) -> list[str]:
    # A trailing dot makes a public name absolute, so that no local search domain is appended.
    absolute_name = f"{host}." if "." in host else host
    try:
        entries = socket.getaddrinfo(absolute_name, port, type=socket.SOCK_STREAM)
    except UnicodeError as exc:
        raise OSError("not a name that can be resolved") from exc
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


log = get_logger("dispatcher")

CONNECT_S = 5.0
RESOLVE_S = 5.0
DRAIN_S = 1.0  # for reading the rest of a response whose status is known, so that the receiver sees no reset
MAX_BYTES = 64 * 1024
_MAX_ADDRESSES = 4


@dataclass(slots=True)
class Attempt:
    """One call of `CallbackSender.send`. `lookup` may outlast the attempt."""

    result: AttemptResult
    lookup: asyncio.Future[Sequence[str]] | None = None


@dataclass(slots=True)
class CallbackSender:
    """Sends one message to one URL within `timeout_s`, including DNS. Never raises the receiver's errors."""

    resolver: Resolver
    allowlist: Allowlist
    tls: ssl.SSLContext
    timeout_s: float
    clock: Callable[[], datetime] = utcnow
    monotonic: Callable[[], float] = field(default=time.monotonic)

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Attempt:
        """POST the body. The URL is checked again: rules may have changed since the job was submitted."""
        started = self.monotonic()
        attempt = Attempt(
            AttemptResult(reason=FailureReason.TIMEOUT, detail=f"No response within {self.timeout_s:g} s.")
        )
        try:
            endpoint = parse_callback_url(url)
            reason = endpoint_blocked_reason(endpoint, self.allowlist)
        except ValueError as exc:
            reason = f"The URL {exc}."
        if reason is not None:
            return Attempt(AttemptResult(reason=FailureReason.REFUSED_URL, detail=reason))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.timeout_s):
                await self._try_addresses(attempt, endpoint, headers, body)
        elapsed_ms = round((self.monotonic() - started) * 1000)
        attempt.result = replace(attempt.result, duration_ms=elapsed_ms)
        return attempt

    async def _try_addresses(
        self, attempt: Attempt, endpoint: Endpoint, headers: Mapping[str, str], body: bytes
    ) -> None:
        addresses = await self._resolve_addresses(attempt, endpoint)
        for address in addresses[:_MAX_ADDRESSES]:
            if not await self._post(attempt, endpoint, address, headers, body):
                return

    async def _resolve_addresses(self, attempt: Attempt, endpoint: Endpoint) -> Sequence[str]:
        """The addresses of the host; empty if any of them is blocked, or there are none."""
        if endpoint.address is not None:
            return [str(endpoint.address)]
        attempt.lookup = asyncio.ensure_future(self.resolver(endpoint.host, endpoint.port))
        attempt.lookup.add_done_callback(_consume_exception)
        try:
            addresses = await asyncio.wait_for(asyncio.shield(attempt.lookup), RESOLVE_S)
        except TimeoutError:
            attempt.result = AttemptResult(
                reason=FailureReason.DNS, detail="The name was not resolved in time."
            )
            return ()
        except OSError:
            attempt.result = AttemptResult(reason=FailureReason.DNS, detail="The name does not resolve.")
            return ()
        reason = resolved_blocked_reason(endpoint, addresses, self.allowlist)
        if reason is None:
            return addresses
        # The address goes only into the log: telling clients would reveal internal names.
        log.warning("callback_address_refused", host=endpoint.host, why=reason)
        attempt.result = AttemptResult(
            reason=FailureReason.REFUSED_ADDRESS,
            detail="The name resolves to an address that callbacks may not reach.",
        )
        return ()

    async def _post(
        self, attempt: Attempt, endpoint: Endpoint, address: str, headers: Mapping[str, str], body: bytes
    ) -> bool:
        """Try one address. True: the connection failed, so another address may be tried."""
        url = f"{endpoint.scheme}://{format_host(address)}:{endpoint.port}{endpoint.target}"
        request_headers = {**headers, "Host": endpoint.authority, "Accept-Encoding": "identity"}
        timeout = httpx2.Timeout(self.timeout_s, connect=min(CONNECT_S, self.timeout_s))
        client = httpx2.AsyncClient(verify=self.tls, trust_env=False, follow_redirects=False, timeout=timeout)
        try:
            async with (
                client,
                client.stream(
                    "POST",
                    url,
                    content=body,
                    headers=request_headers,
                    extensions={"sni_hostname": endpoint.host},
                ) as response,
            ):
                attempt.result = classify_status(
                    response.status_code, response.headers.get("retry-after"), self.clock()
                )
                await _drain(response)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as exc:
            attempt.result = _classify_connect_error(exc)
            return attempt.result.reason is FailureReason.CONNECT
        except httpx2.TimeoutException:
            pass  # `attempt` already has the reason, or a status
        except (httpx2.HTTPError, httpx2.InvalidURL):
            if attempt.result.status is None:
                attempt.result = AttemptResult(
                    reason=FailureReason.PROTOCOL,
                    detail=("The connection was closed, or the response is not valid HTTP."),
                )
        return False


async def _drain(response: httpx2.Response) -> None:
    """Read and discard the rest of the response, within limits."""
    received_bytes = 0
    with contextlib.suppress(TimeoutError, httpx2.HTTPError):
        async with asyncio.timeout(DRAIN_S):
            async for chunk in response.aiter_raw():
                received_bytes += len(chunk)
                if received_bytes > MAX_BYTES:
                    return


def _classify_connect_error(exc: httpx2.TransportError) -> AttemptResult:
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            detail = f"The certificate is not valid for this name: {cause.verify_message}"
            return AttemptResult(reason=FailureReason.TLS, detail=detail[:300])
        if isinstance(cause, ssl.SSLError):
            return AttemptResult(reason=FailureReason.TLS, detail="The TLS handshake failed.")
        cause = cause.__cause__ or cause.__context__
    return AttemptResult(
        reason=FailureReason.CONNECT, detail=("No connection could be made to that address and port.")
    )


def _consume_exception(lookup: asyncio.Future[Sequence[str]]) -> None:
    """Consume the error of a look-up that outlasted its attempt, which was already reported as a time-out."""
    if not lookup.cancelled():
        lookup.exception()
