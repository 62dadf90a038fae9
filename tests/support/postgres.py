"""A real PostgreSQL for tests: the one that REBASE_TEST_POSTGRES_URL names, else one of our own.

There is always one or a loud failure; nothing is skipped. Every caller gets a database of its own name, which
is dropped at the end.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

_LOCAL = "postgresql://postgres@127.0.0.1:5432/postgres"
_WHERE = "set REBASE_TEST_POSTGRES_URL, install postgresql, or pip install pgserver"


@contextmanager
def a_postgres(*, local: bool = True) -> Iterator[str]:
    """URL of a server's maintenance database, by a role that may create databases.

    `local`: the one that already runs on this machine does as well. Tests want none that waits for its disk:
    there a DROP DATABASE was seen to take 15 s, and in one of our own 0.1 s.
    """
    named = os.environ.get("REBASE_TEST_POSTGRES_URL")
    if named:
        trouble = _trouble(named)
        if trouble:
            raise RuntimeError(f"REBASE_TEST_POSTGRES_URL is set, but nothing answers there: {trouble}")
        yield named
    elif local and _trouble(_LOCAL) is None:
        yield _LOCAL
    else:
        with own_postgres() as url:
            yield url


@contextmanager
def a_database(server: str) -> Iterator[str]:
    """SQLAlchemy URL of a new, empty database on this server."""
    name = f"rebase_test_{secrets.token_hex(6)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[call-overload, unused-ignore]
    head, _, _ = server.partition("?")
    try:
        yield f"postgresql+psycopg{head.removeprefix('postgresql').rpartition('/')[0]}/{name}"
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')  # type: ignore[call-overload, unused-ignore]


@contextmanager
def own_postgres() -> Iterator[str]:
    """A server of our own on a free port, which a test may also stop."""
    binaries = _binaries()
    with tempfile.TemporaryDirectory(prefix="rebase-pg-") as folder:
        user = _unprivileged()
        if user is not None:
            shutil.chown(folder, user)
        data, port = Path(folder, "data"), _free_port()
        init = [
            str(binaries / "initdb"),
            "-D",
            str(data),
            "-U",
            "postgres",
            "-A",
            "trust",
            "--no-sync",
            "-E",
            "UTF8",
        ]
        subprocess.run(init, user=user, check=True, capture_output=True, cwd=folder)
        serve = [
            str(binaries / "postgres"),
            "-D",
            str(data),
            "-p",
            str(port),
            "-k",
            folder,
            "-h",
            "127.0.0.1",
            "-F",
        ]
        with Path(folder, "log").open("wb") as log:
            process = subprocess.Popen(serve, user=user, stdout=log, stderr=log, cwd=folder)
        url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        try:
            _wait_for(url, process)
            yield url
        finally:
            process.send_signal(signal.SIGQUIT)
            process.wait(20)


def _unprivileged() -> str | None:
    """The server refuses to run as root; then it runs as somebody who owns nothing."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise RuntimeError("PostgreSQL refuses to run as root, and there is no other user to run it")


def _binaries() -> Path:
    found = shutil.which("postgres")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if (folder / "initdb").exists():
            return folder
    try:
        import pgserver  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as exc:
        raise RuntimeError(f"No PostgreSQL for the tests: {_WHERE}") from exc
    return Path(pgserver.__file__).parent / "pginstall" / "bin"


def _trouble(url: str) -> str | None:
    try:
        with psycopg.connect(url, connect_timeout=3) as connection:
            connection.execute("SELECT 1")
    except psycopg.OperationalError as exc:
        return str(exc)
    return None


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 30
    while _trouble(url):
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError("the PostgreSQL server of the tests did not start")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
