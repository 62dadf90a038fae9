"""Receivers of callbacks on loopback: real sockets, each with its own manners, and what they were sent."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks.webhooks import Webhook


@dataclass(frozen=True)
class Received:
    """One request as it came."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> Any:
        """What the reference library makes of it; raises when the signature does not fit."""
        return Webhook(secret).verify(self.body, dict(self.headers))


@dataclass
class Receiver:
    """Where it listens, and everything that it was sent."""

    url: str
    got: list[Received] = field(default_factory=list)
    connections: int = 0

    def wait(self, number: int = 1, seconds: float = 20.0) -> list[Received]:
        """What was sent, once it is so many."""
        deadline = time.monotonic() + seconds
        while len(self.got) < number:
            assert time.monotonic() < deadline, f"only {len(self.got)} of {number} came"
            time.sleep(0.02)
        return list(self.got)


Manner = Callable[[BaseHTTPRequestHandler, int], None]


def answers(status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Manner:
    """Always the same answer."""

    def manner(handler: BaseHTTPRequestHandler, _number: int) -> None:
        handler.send_response(status)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        with contextlib.suppress(OSError):
            handler.wfile.write(body)

    return manner


def in_turn(*manners: Manner) -> Manner:
    """The first request meets the first manner, and so on; the last one stays."""

    def manner(handler: BaseHTTPRequestHandler, number: int) -> None:
        manners[min(number, len(manners)) - 1](handler, number)

    return manner


def never_answers(until: threading.Event) -> Manner:
    """Reads the request and says nothing."""

    def manner(_handler: BaseHTTPRequestHandler, _number: int) -> None:
        until.wait(60)

    return manner


def drips(until: threading.Event) -> Manner:
    """Answers one byte at a time, without end: each read succeeds, and the answer never does."""

    def manner(handler: BaseHTTPRequestHandler, _number: int) -> None:
        with contextlib.suppress(OSError):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
            while not until.wait(0.1):
                handler.wfile.write(b"a")
                handler.wfile.flush()

    return manner


def huge_body(sent: list[int]) -> Manner:
    """A gigabyte, announced honestly; sent for as long as somebody reads, and counted in `sent`."""

    def manner(handler: BaseHTTPRequestHandler, _number: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(2**30))
        handler.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(2**14):
                sent.append(handler.wfile.write(b"x" * 2**16))

    return manner


def talks_nonsense(handler: BaseHTTPRequestHandler, _number: int) -> None:
    """Something that is not HTTP."""
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.9\r\n")


@contextmanager
def receiver(manner: Manner, tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver on a loopback port until the end of the block."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            headers = {name.lower(): value for name, value in self.headers.items()}
            with lock:
                found.got.append(Received(self.path, headers, body, time.monotonic()))
                number = len(found.got)
            self.close_connection = True
            manner(self, number)

        do_GET = do_POST  # noqa: N815  (what a followed redirect would send)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 128

        def get_request(self) -> tuple[socket.socket, Any]:
            connection, peer = super().get_request()
            with lock:
                found.connections += 1
            if tls is not None:
                # The handshake happens in the handler's thread, with its first read.
                connection = tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            return connection, peer

        def handle_error(self, *_: Any) -> None:
            pass  # a peer that leaves in the middle is what these tests are about

    server = Server(("127.0.0.1", 0), Handler)
    port = server.server_address[1]
    found = Receiver(f"{'https' if tls else 'http'}://127.0.0.1:{port}/hook")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def dead_port() -> int:
    """A loopback port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
