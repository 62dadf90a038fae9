"""Databases of both kinds."""

from support.databases import (  # noqa: F401  (fixtures)
    database_url,
    empty_postgres_url,
    postgres_server,
    postgres_url,
    sqlite_template,
    sqlite_url,
)
