"""`python -m service`: serve on REBASE_HOST and REBASE_PORT."""

from __future__ import annotations

import uvicorn

from core.settings import get_settings
from service.main import app

# Open event streams would hold a stopping server up for ever; clients resume them with Last-Event-ID.
_GRACE_S = 3


def main() -> None:
    """Serve until SIGINT or SIGTERM. The app writes its own log line per request."""
    settings = get_settings()
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
    )


if __name__ == "__main__":
    main()
