"""`python -m service`: serve on REBASE_HOST and REBASE_PORT."""

from __future__ import annotations

import sys

import uvicorn

from rebase.errors import SettingsInvalid
from rebase.logging import configure_logging
from rebase.settings import get_settings
from service.app import create_app

# Open event streams would delay shutdown for ever; clients resume them with Last-Event-ID.
_GRACE_S = 3


def main() -> int:
    """Serve until SIGINT or SIGTERM; returns 2 for unusable settings. The app logs its own requests."""
    settings = get_settings()
    configure_logging(settings)
    try:
        app = create_app(settings)
    except SettingsInvalid as exc:
        sys.stderr.write(f"{exc.message} {exc.hint}\n")
        return 2
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
