"""One attempt: resolve once, check every address, connect to that very address under the name's TLS identity.

Between the check and the connection nothing is resolved again, so a name that changes its mind (DNS
rebinding) gains nothing. No proxy of the environment is used: it would resolve the name itself. Redirects are
not followed. Of the answer only its status is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import httpx2

from rebase.logging import get_logger
from rebase.schemas.callback_policy import Allowlist
from rebase.schemas.callbacks import Endpoint, format_host, parse_callback_url
from rebase.store.repository import utcnow
from service.callbacks.ssrf_guard import endpoint_blocked_reason, resolved_blocked_reason
from service.courier.outcome import AttemptResult, FailureReason, classify_status
from service.courier.resolve import Resolver

log = get_logger("courier")

CONNECT_S = 5.0
RESOLVE_S = 5.0
DRAIN_S = 1.0  # for the rest of an answer whose status is known: read, so that the receiver sees no reset
MAX_BYTES = 64 * 1024
_MAX_ADDRESSES = 4


@dataclass(slots=True)
class Attempt:
    """One use of `Sender.send`. `lookup` may still be under way when the attempt is over."""

    result: AttemptResult
    lookup: asyncio.Future[Sequence[str]] | None = None


@dataclass(slots=True)
class CallbackSender:
    """Sends one message to one URL within `timeout_s`, DNS included. Raises nothing of its receiver's."""

    resolver: Resolver
    allowlist: Allowlist
    tls: ssl.SSLContext
    timeout_s: float
    clock: Callable[[], datetime] = utcnow
    monotonic: Callable[[], float] = field(default=time.monotonic)

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Attempt:
        """POST the body. The URL is judged again: rules may have changed since the job was submitted."""
        started = self.monotonic()
        attempt = Attempt(
            AttemptResult(reason=FailureReason.TIMEOUT, detail=f"No answer within {self.timeout_s:g} s.")
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
        """Where the name leads; nothing when one of the addresses is refused, or there is none."""
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
        # Which address it was is for us: an answer would let strangers read our own names.
        log.warning("callback_address_refused", host=endpoint.host, why=reason)
        attempt.result = AttemptResult(
            reason=FailureReason.REFUSED_ADDRESS,
            detail="The name leads to an address that callbacks may not reach.",
        )
        return ()

    async def _post(
        self, attempt: Attempt, endpoint: Endpoint, address: str, headers: Mapping[str, str], body: bytes
    ) -> bool:
        """One address. True: nobody could be reached there, so another one may be tried."""
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
            pass  # `attempt` says so already, or has a status
        except (httpx2.HTTPError, httpx2.InvalidURL):
            if attempt.result.status is None:
                attempt.result = AttemptResult(
                    reason=FailureReason.PROTOCOL, detail="The connection broke, or what came is not HTTP."
                )
        return False


async def _drain(response: httpx2.Response) -> None:
    """Read what is left, within bounds, and keep none of it."""
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
            return AttemptResult(reason=FailureReason.TLS, detail="No TLS connection could be agreed upon.")
        cause = cause.__cause__ or cause.__context__
    return AttemptResult(reason=FailureReason.CONNECT, detail="Nobody answers at that address and port.")


def _consume_exception(lookup: asyncio.Future[Sequence[str]]) -> None:
    """A look-up that ends after its attempt: its error was told already, as one of time."""
    if not lookup.cancelled():
        lookup.exception()
