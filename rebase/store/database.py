"""One database, SQLite or PostgreSQL: connections, transactions, and mapping transient errors to `Busy`.

SQLite runs in WAL mode with enforced foreign keys. Writers open with BEGIN IMMEDIATE, because a transaction
that starts as a reader and then writes fails at once under contention, without waiting for `busy_timeout`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from rebase.errors import Busy

POOL_SIZE = 10  # for one API process, more connections would only queue inside PostgreSQL
TIMEOUT_S = 5  # longest wait for a lock or a connection before raising Busy
_NO_TRANSACTION = "rebase_no_transaction"
_SQLITE_TRANSIENT_ERRORS = ("locked", "busy", "unable to open", "disk i/o", "is full")


class Database:
    """An engine with the three access patterns of this project."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.is_postgres = engine.dialect.name == "postgresql"
        # SQLite needs no option: its driver opens no transaction unless `_begin_immediate` does.
        options = {"isolation_level": "AUTOCOMMIT"} if self.is_postgres else {_NO_TRANSACTION: True}
        self._autocommit = engine.execution_options(**options)

    @classmethod
    def open(cls, url: str, *, pool_size: int = POOL_SIZE, timeout_s: float = TIMEOUT_S) -> Database:
        """Open a database by SQLAlchemy URL, without connecting yet. Creates the folder of an SQLite file."""
        return cls(make_engine(url, pool_size=pool_size, timeout_s=timeout_s))

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Read without a transaction: each statement sees the latest committed data. Raises Busy."""
        with _raise_busy_on_transient_errors(), self._autocommit.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: committed at the end of the block, rolled back on any error. Raises Busy."""
        with _raise_busy_on_transient_errors(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def statement(self) -> Iterator[Connection]:
        """For a single-statement write: autocommit on PostgreSQL saves two round trips. Raises Busy."""
        with (
            _raise_busy_on_transient_errors(),
            self._autocommit.connect() if self.is_postgres else self.engine.begin() as connection,
        ):
            yield connection

    def close(self) -> None:
        """Close all pooled connections."""
        self.engine.dispose()


def make_engine(url: str, *, pool_size: int = POOL_SIZE, timeout_s: float = TIMEOUT_S) -> Engine:
    """An engine with this project's timeouts. Pass `timeout_s` = 0 for migrations, which may take long.

    Errors do not quote statement parameters: errors are logged, and requests are private to their owner.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(
            parsed,
            pool_size=pool_size,
            pool_timeout=timeout_s or 30,
            hide_parameters=True,
            connect_args={"timeout": timeout_s or 60},
        )
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_immediate)
        return engine
    limits = f"-c lock_timeout={int(timeout_s * 1000)} -c statement_timeout={int(timeout_s * 3000)}"
    return create_engine(
        parsed,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=timeout_s or 30,
        pool_use_lifo=True,
        hide_parameters=True,
        connect_args={"connect_timeout": 5, "options": limits if timeout_s else ""},
    )


def _configure_sqlite(connection: Any, _entry: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # the driver must not open transactions itself
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_immediate(connection: Connection) -> None:
    if not connection.get_execution_options().get(_NO_TRANSACTION):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def _raise_busy_on_transient_errors() -> Iterator[None]:
    """Locked, unreachable or overloaded becomes Busy; any other error is a bug and passes unchanged."""
    try:
        yield
    except (PoolTimeout, OperationalError, InterfaceError) as exc:
        if _is_transient_error(exc):
            raise Busy("The database is currently unavailable.", hint="Try again in a few seconds.") from exc
        raise


def _is_transient_error(exc: Exception) -> bool:
    original = exc.orig if isinstance(exc, DBAPIError) else None
    if original is not None and type(original).__module__.startswith("sqlite3"):
        return any(word in str(original).lower() for word in _SQLITE_TRANSIENT_ERRORS)
    return True
