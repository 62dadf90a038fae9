"""Fixtures: one running service for a session, and a way to run command lines against it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rebase.cli.app import run
from support.command import Command, Done
from support.running_service import RunningService, running_service


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with running_service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def rebase(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run one command line in this process, with the environment as the test has set it."""

    def call(*arguments: str) -> Done:
        code = int(run(arguments))
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


@pytest.fixture
def at_service(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> RunningService:
    """Commands of this test talk to the service, and share its home."""
    monkeypatch.chdir(service.home)
    monkeypatch.setenv("REBASE_HOME", str(service.home))
    monkeypatch.setenv("REBASE_URL", service.url)
    return service
