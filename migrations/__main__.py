"""`python -m migrations`: migrate this deployment's database to the newest schema."""

from __future__ import annotations

from migrations import head, upgrade
from rebase.logging import configure_logging, get_logger
from rebase.settings import get_settings


def main() -> None:
    """Run once per upgrade, before the services start. Idempotent, and safe to run twice at once."""
    settings = get_settings()
    configure_logging(settings)
    upgrade(settings.resolved_database_url)
    get_logger("migrations").info("database_is_current", revision=head())


if __name__ == "__main__":
    main()
