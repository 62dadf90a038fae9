"""One database, SQLite or PostgreSQL: connections, transactions, and how its troubles become `Busy`.

SQLite runs in WAL mode with enforced foreign keys; writers open with BEGIN IMMEDIATE, because a
transaction that starts as a reader and then writes fails at once under contention, without
waiting for `busy_timeout`.
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

POOL_SIZE = 10  # more connections than this only queue inside PostgreSQL for one API process
TIMEOUT_S = 5  # longest wait for a lock or for a connection, before the caller is told to come back
_NO_TRANSACTION = "rebase_no_transaction"
_SQLITE_TRANSIENT_ERRORS = ("locked", "busy", "unable to open", "disk i/o", "is full")


class Database:
    """An engine with the three ways that this project talks to it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.is_postgres = engine.dialect.name == "postgresql"
        # SQLite is left alone: its driver opens no transaction unless `_begin_immediate` does.
        options = {"isolation_level": "AUTOCOMMIT"} if self.is_postgres else {_NO_TRANSACTION: True}
        self._autocommit = engine.execution_options(**options)

    @classmethod
    def open(cls, url: str, *, pool_size: int = POOL_SIZE, timeout_s: float = TIMEOUT_S) -> Database:
        """Open a database by SQLAlchemy URL; nothing connects yet. Creates the folder of an SQLite file."""
        return cls(make_engine(url, pool_size=pool_size, timeout_s=timeout_s))

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Read without a transaction: each statement sees what is committed. Raises Busy."""
        with _raise_busy_on_transient_errors(), self._autocommit.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction, committed at the end of the block and rolled back by any error. Raises Busy."""
        with _raise_busy_on_transient_errors(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def statement(self) -> Iterator[Connection]:
        """For a write that is one statement: on PostgreSQL it commits by itself, saving two round trips."""
        with (
            _raise_busy_on_transient_errors(),
            self._autocommit.connect() if self.is_postgres else self.engine.begin() as connection,
        ):
            yield connection

    def close(self) -> None:
        """Drop all pooled connections."""
        self.engine.dispose()


def make_engine(url: str, *, pool_size: int = POOL_SIZE, timeout_s: float = TIMEOUT_S) -> Engine:
    """An engine with this project's timeouts. `wait_s` = 0: migrations, which may take long.

    Its errors do not quote the values of a statement: they end in logs, and requests are their owner's.
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
    connection.isolation_level = None  # the driver opens no transactions of its own
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
    """Locked, unreachable, overloaded: all mean `come back soon`; anything else is a bug and stays one."""
    try:
        yield
    except (PoolTimeout, OperationalError, InterfaceError) as exc:
        if _is_transient_error(exc):
            raise Busy("The database cannot answer just now.", hint="Try again in a few seconds.") from exc
        raise


def _is_transient_error(exc: Exception) -> bool:
    original = exc.orig if isinstance(exc, DBAPIError) else None
    if original is not None and type(original).__module__.startswith("sqlite3"):
        return any(word in str(original).lower() for word in _SQLITE_TRANSIENT_ERRORS)
    return True
