"""`python -m service.callbacks`: deliver this deployment's callbacks until SIGINT or SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import sys

from rebase.errors import SettingsInvalid
from rebase.logging import configure_logging
from rebase.schemas.callback_policy import Allowlist, parse_delays
from rebase.settings import Settings, get_settings
from rebase.store.database import Database
from rebase.store.delivery_queue import DeliveryQueue, LeaseLimits
from rebase.store.signing_secrets import SigningSecretRepository
from rebase.store.vault import Vault
from service.callbacks.dispatcher import CallbackDispatcher
from service.callbacks.health import get_heartbeat_file
from service.callbacks.sender import CallbackSender, Resolver, SystemResolver, make_tls_context


def make_dispatcher(
    settings: Settings, db: Database, resolver: Resolver, lease_limits: LeaseLimits
) -> CallbackDispatcher:
    """Raises SettingsInvalid if secrets cannot be decrypted or the certificates cannot be read."""
    sender = CallbackSender(
        resolver,
        Allowlist.parse(settings.callback_allow),
        make_tls_context(settings.callback_ca_file),
        settings.callback_timeout_s,
    )
    return CallbackDispatcher(
        DeliveryQueue(db, limits=lease_limits),
        SigningSecretRepository(db),
        Vault.from_settings(settings),
        sender,
        parse_delays(settings.callback_waits_s),
        heartbeat_file=get_heartbeat_file(settings),
    )


def main() -> int:
    """Returns 0 after a signal, 2 if the settings are unusable."""
    settings = get_settings()
    configure_logging(settings)
    try:
        asyncio.run(_serve(settings))
    except SettingsInvalid as exc:
        sys.stderr.write(f"{exc.message} {exc.hint}\n")
        return 2
    return 0


async def _serve(settings: Settings) -> None:
    lease_limits = LeaseLimits()
    resolver = SystemResolver(lease_limits.total)
    db = Database.open(settings.resolved_database_url)
    try:
        dispatcher = make_dispatcher(settings, db, resolver, lease_limits)
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signal_number, dispatcher.stop)
        await dispatcher.run()
    finally:
        resolver.close()
        db.close()


if __name__ == "__main__":
    sys.exit(main())
