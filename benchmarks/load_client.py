"""The load: N keep-alive connections that each send the next request when the last answer is in.

    python -m benchmarks.load_client PORT SECONDS CLIENTS [RATE]

With RATE (requests per second, all connections together) each connection waits for its turn instead, so that
latency is measured below saturation. Plain streams and a process of its own, so that the client is not what
is measured. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

BODY = json.dumps(
    {
        "adapter": {"repo_id": "acme/qwen-sql-lora", "revision": "main"},
        "target": {"repo_id": "meta-llama/Llama-3.2-3B", "revision": "main"},
        "method": {"name": "cross_lora", "rank": 320, "alignment": "anchored"},
        "output": {"repo_id": "acme/llama-sql-lora", "private": True},
    }
).encode()


def _request(port: int) -> bytes:
    head = (
        f"POST /convert HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(BODY)}\r\n\r\n"
    )
    return head.encode() + BODY


async def _connection(
    port: int, first: float, gap: float, until: float, seconds: list[float], refused: list[int]
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = _request(port)
    turn = first
    while time.perf_counter() < until:
        if gap:
            await asyncio.sleep(max(turn - time.perf_counter(), 0.0))
            turn += gap
        started = time.perf_counter()
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        start = head.index(b"content-length:") + len(b"content-length:")
        await reader.readexactly(int(head[start : head.index(b"\r", start)]))
        if head.split(b" ", 2)[1] == b"202":
            seconds.append(time.perf_counter() - started)
        else:
            refused.append(1)
    writer.close()


async def drive(port: int, duration_s: float, clients: int, rate: float = 0.0) -> dict[str, object]:
    """Latencies in ms, sorted, of accepted requests; refusals; the wall-clock time they took."""
    seconds: list[float] = []
    refused: list[int] = []
    started = time.perf_counter()
    until = started + duration_s
    gap = clients / rate if rate else 0.0
    turns = [started + gap * number / clients for number in range(clients)]
    await asyncio.gather(*(_connection(port, first, gap, until, seconds, refused) for first in turns))
    took = time.perf_counter() - started
    return {"ms": sorted(round(s * 1000, 2) for s in seconds), "refused": len(refused), "seconds": took}


if __name__ == "__main__":
    import uvloop

    print(
        json.dumps(
            uvloop.run(
                drive(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), *map(float, sys.argv[4:]))
            )
        )
    )
