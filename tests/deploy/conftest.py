"""A database server."""

from support.databases import postgres_server  # noqa: F401  (fixture)
