"""A courier from a deployment's settings."""

from __future__ import annotations

import ssl
from pathlib import Path

from rebase.errors import SettingsInvalid
from rebase.schemas.callback_policy import Allowlist, parse_delays
from rebase.settings import Settings
from rebase.store.database import Database
from rebase.store.delivery_queue import DeliveryQueue, LeaseLimits
from rebase.store.signing_secrets import SigningSecretRepository
from rebase.store.vault import Vault
from service.courier.courier import Courier
from service.courier.health import alive_file
from service.courier.resolve import Resolver
from service.courier.sending import Sender


def make_courier(settings: Settings, db: Database, resolver: Resolver, bounds: LeaseLimits) -> Courier:
    """Raises SettingsInvalid where secrets cannot be opened or the certificates cannot be read."""
    sender = Sender(
        resolver,
        Allowlist.parse(settings.callback_allow),
        tls_context(settings.callback_ca_file),
        settings.callback_timeout_s,
    )
    return Courier(
        DeliveryQueue(db, limits=bounds),
        SigningSecretRepository(db),
        Vault.from_settings(settings),
        sender,
        parse_delays(settings.callback_waits_s),
        alive=alive_file(settings),
    )


def tls_context(further: Path | None) -> ssl.SSLContext:
    """The system's authorities, and those of a file. Raises SettingsInvalid."""
    context = ssl.create_default_context()
    if further is not None:
        try:
            context.load_verify_locations(further)
        except (OSError, ssl.SSLError) as exc:
            raise SettingsInvalid(
                "The file in REBASE_CALLBACK_CA_FILE cannot be read as certificates.",
                hint="It must hold one or more certificates in PEM form.",
            ) from exc
    return context
