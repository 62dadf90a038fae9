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
from service.courier.courier import CallbackDispatcher
from service.courier.health import get_heartbeat_file
from service.courier.resolve import Resolver
from service.courier.sending import CallbackSender


def make_dispatcher(
    settings: Settings, db: Database, resolver: Resolver, lease_limits: LeaseLimits
) -> CallbackDispatcher:
    """Raises SettingsInvalid where secrets cannot be opened or the certificates cannot be read."""
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


def make_tls_context(extra_ca_file: Path | None) -> ssl.SSLContext:
    """The system's authorities, and those of a file. Raises SettingsInvalid."""
    context = ssl.create_default_context()
    if extra_ca_file is not None:
        try:
            context.load_verify_locations(extra_ca_file)
        except (OSError, ssl.SSLError) as exc:
            raise SettingsInvalid(
                "The file in REBASE_CALLBACK_CA_FILE cannot be read as certificates.",
                hint="It must hold one or more certificates in PEM form.",
            ) from exc
    return context
