"""`python -m service.courier`: deliver this deployment's callbacks until SIGINT or SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import sys

from rebase.errors import SettingsInvalid
from rebase.logging import configure_logging
from rebase.settings import Settings, get_settings
from rebase.store.database import Database
from rebase.store.delivery_queue import LeaseLimits
from service.courier.build import make_courier
from service.courier.resolve import SystemResolver


def main() -> int:
    """0 after a signal; 2 when the settings cannot be used."""
    settings = get_settings()
    configure_logging(settings)
    try:
        asyncio.run(_serve(settings))
    except SettingsInvalid as exc:
        sys.stderr.write(f"{exc.message} {exc.hint}\n")
        return 2
    return 0


async def _serve(settings: Settings) -> None:
    bounds = LeaseLimits()
    resolver = SystemResolver(bounds.total)
    db = Database.open(settings.resolved_database_url)
    try:
        courier = make_courier(settings, db, resolver, bounds)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, courier.stop)
        await courier.run()
    finally:
        resolver.close()
        db.close()


if __name__ == "__main__":
    sys.exit(main())
