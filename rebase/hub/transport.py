"""HTTP transport for the Hub: timeouts, bounded retries, and range requests for parts of a file."""

from __future__ import annotations

import re
from collections.abc import Callable
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import constants, get_session, hf_raise_for_status, set_client_factory
from huggingface_hub.errors import OfflineModeIsEnabled

from rebase.errors import HubUnavailable, UnsafeFile
from rebase.hub.files import FileSource
from rebase.hub.remote_errors import hub_errors
from rebase.retry import Backoff, retry

T = TypeVar("T")
MAX_ATTEMPTS = 3
_MAX_RETRY_AFTER_S = 120  # beyond that the Hub counts as unavailable, and the job is retried later
_CONTENT_RANGE = re.compile(r"^bytes (\d+)-(\d+)/(\d+)$")
_installed_settings: dict[str, float] = {}


def install_client(timeout_s: float) -> None:
    """Install an HTTP client with timeouts for the whole process; the Hub client's default waits forever.

    `timeout_s` limits connecting and each single read or write, not a whole transfer.
    """
    if _installed_settings.get("timeout_s") == timeout_s:
        return
    _installed_settings["timeout_s"] = timeout_s

    def make_client() -> httpx2.Client:
        hooks: dict[str, list[Callable[..., None]]] = {
            "request": [_reject_when_offline],
            "response": [_reject_long_waits],
        }
        client = httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=timeout_s)
        # One client serves the jobs of all tenants, so it must not keep cookies.
        client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        return client

    set_client_factory(make_client)


def _reject_when_offline(request: httpx2.Request) -> None:
    """Enforce offline mode, whose own hook is replaced by this client."""
    if constants.is_offline_mode():
        raise OfflineModeIsEnabled(f"no requests to {request.url.host} in offline mode")


def _reject_long_waits(response: httpx2.Response) -> None:
    """The Hub client sleeps for as long as a 429 asks; if that is hours, the job would appear to hang."""
    wait = response.headers.get("Retry-After", "")
    if response.status_code in (429, 503) and wait.isdecimal() and int(wait) > _MAX_RETRY_AFTER_S:
        raise HubUnavailable(
            f"The Hub's rate limit was reached; it asks to wait {wait} s.",
            hint="Retry the job after that time.",
        )


def retry_read(call: Callable[[], T], delay_s: float, attempts: int = MAX_ATTEMPTS) -> T:
    """Run `call()` up to `attempts` times while it raises HubUnavailable. For read-only calls."""
    return retry(call, HubUnavailable, Backoff(delay_s), attempts=attempts)


class RangeSource:
    """Random access to a file on the Hub: each read is one range request with a validated response.

    The token is never sent to storage hosts that the Hub redirects to: the HTTP client drops it when the
    origin changes. If the server ignores ranges, the whole file is downloaded once and read from then on.
    """

    def __init__(
        self,
        url: str,
        headers: dict[str, str],
        size: int,
        name: str,
        download: Callable[[], Path],
        wait_s: float,
    ) -> None:
        """`headers` include the token; `download` fetches the whole file; `name` is its name in errors."""
        self.size = size
        self._url = url
        # With compression, ranges would refer to the compressed body.
        self._headers = {**headers, "Accept-Encoding": "identity"}
        self._name = name
        self._download = download
        self._wait_s = wait_s
        self._local: FileSource | None = None

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`."""
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        if offset < 0 or offset + len(buffer) > self.size:
            raise UnsafeFile(
                f"{self._name} is truncated: bytes {offset} to {offset + len(buffer)} were requested, but "
                f"it has {self.size}."
            )
        if self._local is None and len(buffer):
            retry_read(lambda: self._read_range(offset, buffer), self._wait_s)
        if self._local is not None:
            self._local.read_into(offset, buffer)

    def _read_range(self, offset: int, buffer: memoryview) -> None:
        last = offset + len(buffer) - 1
        headers = {**self._headers, "Range": f"bytes={offset}-{last}"}
        with hub_errors(self._name), get_session().stream("GET", self._url, headers=headers) as response:
            hf_raise_for_status(response)
            if response.status_code == 200:
                self._local = FileSource(self._download(), self._name)
                return
            content_range = response.headers.get("Content-Range", "")
            match = _CONTENT_RANGE.match(content_range)
            expected = (offset, last, self.size)
            if response.status_code != 206 or match is None or tuple(map(int, match.groups())) != expected:
                raise UnsafeFile(
                    f"{self._name}: the Hub returned different bytes ('{content_range[:60]}') from those "
                    f"requested ({offset}-{last}/{self.size}).",
                    hint="A proxy may be the cause; try again without it.",
                )
            done = 0
            for chunk in response.iter_raw():
                if done + len(chunk) > len(buffer):
                    raise UnsafeFile(f"{self._name}: the Hub sent more bytes than it declared.")
                buffer[done : done + len(chunk)] = chunk
                done += len(chunk)
        if done != len(buffer):
            raise HubUnavailable(f"{self._name}: the connection closed after {done} of {len(buffer)} bytes.")
