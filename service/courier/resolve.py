"""Names to addresses, off the event loop. The system's resolver cannot be cancelled, so it has threads of its
own: a name server that never answers holds one of them for a while, and nothing else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol


class Resolver(Protocol):
    """Addresses of a name as text, best first. Raises OSError when there are none."""

    async def __call__(self, host: str, port: int, /) -> Sequence[str]: ...


class SystemResolver:
    """getaddrinfo on as many threads as there can be attempts at once."""

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="dns")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """Each address once. Raises OSError."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, _look_up_addresses, host, port)

    def close(self) -> None:
        """Let go of the threads; one that still waits for an answer ends by itself."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _look_up_addresses(host: str, port: int) -> list[str]:
    # A dot at the end: a public name is meant as it stands, and no search domain of ours is tried after it.
    absolute_name = f"{host}." if "." in host else host
    try:
        entries = socket.getaddrinfo(absolute_name, port, type=socket.SOCK_STREAM)
    except UnicodeError as exc:
        raise OSError("not a name that can be looked up") from exc
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))
