"""The stand-in as a server in a thread of the test, or in a process of its own."""

from __future__ import annotations

import socket
import tempfile
import threading
from pathlib import Path
from types import TracebackType

import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import Response

from support.standin_hub import listing, reading, webhooks, writing
from support.standin_hub.access import Access, Refused
from support.standin_hub.faults import Fault, FaultLayer, Logged
from support.standin_hub.store import Store, Token
from support.standin_hub.webhooks import Webhooks


class StandinHub:
    """A Hub on 127.0.0.1. `root` keeps its state; without one, a temporary folder does."""

    def __init__(self, root: Path | None = None, *, port: int = 0) -> None:
        self._temporary = None if root else tempfile.TemporaryDirectory(prefix="standin-hub-")
        self.store = Store(root or Path(self._temporary.name))  # type: ignore[union-attr]
        self.tokens: dict[str, Token] = {}
        self.webhooks = Webhooks(self.store)
        self._layer = FaultLayer(_app(self.store, Access(self.store, self.tokens), self.webhooks))
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            self._layer, log_config=None, log_level="critical", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)

    def add_repo(self, repo_id: str, folder: Path, *, private: bool = False, gated: bool = False) -> str:
        """Commit a folder's files to `main` of a repo, new or not; returns the commit's sha."""
        return self.store.seed(repo_id, folder, private=private, gated=gated)

    def add_token(
        self, value: str, *, user: str, role: str = "write", orgs: dict[str, str] | None = None
    ) -> str:
        """A token that the Hub accepts; returns it."""
        self.tokens[value] = Token(user, role, orgs or {})
        return value

    def fail(self, where: str, fault: Fault | None = None, **details: object) -> None:
        """The next requests that match `where` go wrong; `details` as in `Fault`."""
        self._layer.faults.append(fault or Fault(where, **details))  # type: ignore[arg-type]

    @property
    def requests(self) -> list[Logged]:
        """Every request so far; may be cleared."""
        return self._layer.requests

    def serve(self) -> None:
        """Serve until the process is told to stop."""
        self._server.run(sockets=[self._socket])

    def __enter__(self) -> StandinHub:
        self._thread = threading.Thread(target=self.serve, name="standin-hub", daemon=True)
        self._thread.start()
        socket.create_connection(("127.0.0.1", self.port), timeout=10).close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(timeout=10)
        self._socket.close()
        if self._temporary:
            self._temporary.cleanup()


def _app(store: Store, access: Access, hooks: Webhooks) -> FastAPI:
    app = FastAPI(openapi_url=None)

    @app.exception_handler(Refused)
    async def refused(_: Request, refusal: Refused) -> Response:
        return refusal.response()

    app.include_router(webhooks.routes(hooks, access))
    app.include_router(listing.routes(store, access))
    app.include_router(writing.routes(store, access))
    app.include_router(reading.routes(store, access))
    return app
