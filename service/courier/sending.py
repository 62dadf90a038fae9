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
from service.courier.outcome import Outcome, Reason, judge
from service.courier.resolve import Resolver

log = get_logger("courier")

CONNECT_S = 5.0
RESOLVE_S = 5.0
DRAIN_S = 1.0  # for the rest of an answer whose status is known: read, so that the receiver sees no reset
MOST_BYTES = 64 * 1024
_MOST_ADDRESSES = 4


@dataclass(slots=True)
class Attempt:
    """One use of `Sender.send`. `lookup` may still be under way when the attempt is over."""

    outcome: Outcome
    lookup: asyncio.Future[Sequence[str]] | None = None


@dataclass(slots=True)
class Sender:
    """Sends one message to one URL within `timeout_s`, DNS included. Raises nothing of its receiver's."""

    resolver: Resolver
    allowed: Allowlist
    tls: ssl.SSLContext
    timeout_s: float
    clock: Callable[[], datetime] = utcnow
    monotonic: Callable[[], float] = field(default=time.monotonic)

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Attempt:
        """POST the body. The URL is judged again: rules may have changed since the job was submitted."""
        started = self.monotonic()
        attempt = Attempt(Outcome(reason=Reason.TIMEOUT, detail=f"No answer within {self.timeout_s:g} s."))
        try:
            receiver = parse_callback_url(url)
            why = endpoint_blocked_reason(receiver, self.allowed)
        except ValueError as exc:
            why = f"The URL {exc}."
        if why is not None:
            return Attempt(Outcome(reason=Reason.REFUSED_URL, detail=why))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.timeout_s):
                await self._try(attempt, receiver, headers, body)
        spent = round((self.monotonic() - started) * 1000)
        attempt.outcome = replace(attempt.outcome, duration_ms=spent)
        return attempt

    async def _try(
        self, attempt: Attempt, receiver: Endpoint, headers: Mapping[str, str], body: bytes
    ) -> None:
        addresses = await self._addresses(attempt, receiver)
        for address in addresses[:_MOST_ADDRESSES]:
            if not await self._post(attempt, receiver, address, headers, body):
                return

    async def _addresses(self, attempt: Attempt, receiver: Endpoint) -> Sequence[str]:
        """Where the name leads; nothing when one of the addresses is refused, or there is none."""
        if receiver.address is not None:
            return [str(receiver.address)]
        attempt.lookup = asyncio.ensure_future(self.resolver(receiver.host, receiver.port))
        attempt.lookup.add_done_callback(_mark_seen)
        try:
            found = await asyncio.wait_for(asyncio.shield(attempt.lookup), RESOLVE_S)
        except TimeoutError:
            attempt.outcome = Outcome(reason=Reason.DNS, detail="The name was not resolved in time.")
            return ()
        except OSError:
            attempt.outcome = Outcome(reason=Reason.DNS, detail="The name does not resolve.")
            return ()
        why = resolved_blocked_reason(receiver, found, self.allowed)
        if why is None:
            return found
        # Which address it was is for us: an answer would let strangers read our own names.
        log.warning("callback_address_refused", host=receiver.host, why=why)
        attempt.outcome = Outcome(
            reason=Reason.REFUSED_ADDRESS, detail="The name leads to an address that callbacks may not reach."
        )
        return ()

    async def _post(
        self, attempt: Attempt, receiver: Endpoint, address: str, headers: Mapping[str, str], body: bytes
    ) -> bool:
        """One address. True: nobody could be reached there, so another one may be tried."""
        url = f"{receiver.scheme}://{format_host(address)}:{receiver.port}{receiver.target}"
        sent = {**headers, "Host": receiver.authority, "Accept-Encoding": "identity"}
        timeout = httpx2.Timeout(self.timeout_s, connect=min(CONNECT_S, self.timeout_s))
        client = httpx2.AsyncClient(verify=self.tls, trust_env=False, follow_redirects=False, timeout=timeout)
        try:
            async with (
                client,
                client.stream(
                    "POST", url, content=body, headers=sent, extensions={"sni_hostname": receiver.host}
                ) as answer,
            ):
                attempt.outcome = judge(answer.status_code, answer.headers.get("retry-after"), self.clock())
                await _drain(answer)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as exc:
            attempt.outcome = _unreachable(exc)
            return attempt.outcome.reason is Reason.CONNECT
        except httpx2.TimeoutException:
            pass  # `attempt` says so already, or has a status
        except (httpx2.HTTPError, httpx2.InvalidURL):
            if attempt.outcome.status is None:
                attempt.outcome = Outcome(
                    reason=Reason.PROTOCOL, detail="The connection broke, or what came is not HTTP."
                )
        return False


async def _drain(answer: httpx2.Response) -> None:
    """Read what is left, within bounds, and keep none of it."""
    read = 0
    with contextlib.suppress(TimeoutError, httpx2.HTTPError):
        async with asyncio.timeout(DRAIN_S):
            async for piece in answer.aiter_raw():
                read += len(piece)
                if read > MOST_BYTES:
                    return


def _unreachable(exc: httpx2.TransportError) -> Outcome:
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            detail = f"The certificate is not valid for this name: {cause.verify_message}"
            return Outcome(reason=Reason.TLS, detail=detail[:300])
        if isinstance(cause, ssl.SSLError):
            return Outcome(reason=Reason.TLS, detail="No TLS connection could be agreed upon.")
        cause = cause.__cause__ or cause.__context__
    return Outcome(reason=Reason.CONNECT, detail="Nobody answers at that address and port.")


def _mark_seen(lookup: asyncio.Future[Sequence[str]]) -> None:
    """A look-up that ends after its attempt: its error was told already, as one of time."""
    if not lookup.cancelled():
        lookup.exception()
