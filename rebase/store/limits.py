"""A tenant's limits: the deployment's settings, overridden by the tenant's own row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from rebase.errors import NotFound, RequestInvalid
from rebase.settings import Settings
from rebase.store.tables.tenants import Tenant, TenantLimits

UNLIMITED = -1  # in a tenant's row: no limit, whatever the settings
_MAX_LIMIT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Limits:
    """None means no limit. Jobs running at once, unfinished jobs, jobs per 24 hours, and requests per
    minute."""

    max_running: int | None = None
    max_queued: int | None = None
    jobs_per_day: int | None = None
    requests_per_minute: int | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Limits:
        """The limits of tenants without a row of their own."""
        return cls(
            settings.tenant_max_running,
            settings.tenant_max_queued,
            settings.tenant_jobs_per_day,
            settings.tenant_requests_per_minute,
        )

    @property
    def has_job_limits(self) -> bool:
        """Whether submissions must be counted."""
        return self.max_queued is not None or self.jobs_per_day is not None


NO_LIMITS: Limits = Limits()
LIMIT_FIELDS = tuple(field.name for field in fields(Limits))
_COLUMNS = [getattr(TenantLimits, name) for name in LIMIT_FIELDS]


def load_limits(connection: Connection, tenant_id: str, defaults: Limits) -> Limits:
    """One tenant's current limits."""
    row = connection.execute(select(*_COLUMNS).where(TenantLimits.tenant_id == tenant_id)).one_or_none()
    return defaults if row is None else merge_limits(defaults, row._mapping)


def merge_limits(defaults: Limits, row: Mapping[Any, Any]) -> Limits:
    """The defaults overridden by a tenant's own values."""
    stored = {name: row[name] for name in LIMIT_FIELDS if row[name] is not None}
    return replace(
        defaults, **{name: None if number == UNLIMITED else number for name, number in stored.items()}
    )


def load_stored_limits(connection: Connection, tenant_id: str) -> dict[str, int | None]:
    """The values of a tenant's own row: None uses the setting, UNLIMITED means no limit."""
    row = connection.execute(select(*_COLUMNS).where(TenantLimits.tenant_id == tenant_id)).one_or_none()
    return dict(row._mapping) if row is not None else asdict(NO_LIMITS)


def set_limits(
    connection: Connection, tenant_id: str, changes: Mapping[str, int | None], now: datetime
) -> None:
    """Change some of a tenant's limits (None: use the setting). Raises NotFound, RequestInvalid."""
    for name, number in changes.items():
        if number is not None and number != UNLIMITED and not 1 <= number <= _MAX_LIMIT:
            raise RequestInvalid(
                f"{name} must be an integer from 1, 'none' or 'default', not {number}.", pointer=f"/{name}"
            )
    check_tenant_exists(connection, tenant_id)
    new_limits = {**load_stored_limits(connection, tenant_id), **changes}
    if all(number is None for number in new_limits.values()):
        connection.execute(delete(TenantLimits).where(TenantLimits.tenant_id == tenant_id))
        return
    values = {**new_limits, "updated_at": now}
    result = connection.execute(
        update(TenantLimits).where(TenantLimits.tenant_id == tenant_id).values(**values)
    )
    if result.rowcount == 0:
        connection.execute(insert(TenantLimits).values(tenant_id=tenant_id, **values))


def check_tenant_exists(connection: Connection, tenant_id: str) -> None:
    """Raises NotFound."""
    if connection.scalar(select(Tenant.id).where(Tenant.id == tenant_id)) is None:
        raise NotFound(
            f"There is no tenant '{tenant_id}'.",
            hint=("`rebase tenants ls` lists them; creating a key creates its tenant."),
        )
