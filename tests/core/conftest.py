"""Databases of both kinds."""

from support.databases import (  # noqa: F401  (fixtures)
    clock,
    database_url,
    empty_postgres_url,
    postgres_url,
    sqlite_template,
    sqlite_url,
    store,
)
