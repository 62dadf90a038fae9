"""`python -m workers`: the Celery worker with the arguments that this deployment needs."""

from __future__ import annotations

import sys

from rebase.settings import get_settings


def main() -> int:
    """Run until SIGTERM. One child process per worker, since a GPU has room for only one job."""
    from workers.celery_app import app

    settings = get_settings()
    arguments = [
        "worker",
        "-c",
        "1",
        "--without-gossip",
        "--without-mingle",
        f"--loglevel={settings.log_level}",
    ]
    app.worker_main(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
