"""The built wheel, installed outside the checkout, beside a project that has folders of the same names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("rebase", "service", "workers", "migrations", "pyproject.toml", "README.md", "LICENSE")
# What a user's own project may well be called.
FOLDERS = ("core", "service", "transfer", "workers", "store", "models", "methods")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout stays clean; without isolation, so that no index is asked."""
    copy = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(out), str(copy)], check=True, timeout=240)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel, and this one's packages but for the checkout itself."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    here = Path(sysconfig.get_paths()["purelib"])
    there = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for entry in here.iterdir():
        if "rebase_lora" not in entry.name and not entry.name.startswith("__"):
            (there / entry.name).symlink_to(entry)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(there)
    return home / "bin" / "python"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder that has packages of its own under general names; importing any of them is a mistake."""
    for name in FOLDERS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise AssertionError('the project\\'s own {name}')\n")
    return tmp_path


def _run(python: Path, project: Path, *arguments: str) -> str:
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "REBASE_HOME": str(project / "home"),
        "REBASE_HUB_DIR": str(ROOT / "examples" / "hub"),
    }
    command = [str(python), *arguments]
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_library_and_three_thin_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}
        names = set(archive.namelist())
    assert {name for name in top if not name.endswith(".dist-info")} == {
        "rebase", "service", "workers", "migrations",
    }  # fmt: skip
    assert {"rebase/py.typed", "rebase/corpus/data/code.txt", "migrations/script.py.mako"} <= names


def test_the_client_is_imported_from_a_project_with_folders_of_the_same_names(
    python: Path, project: Path
) -> None:
    code = "import rebase.client, sys; print(rebase.client.__file__, 'torch' in sys.modules)"
    file, loads_torch = _run(python, project, "-c", code).split()
    assert Path(file).is_relative_to(python.parents[1])
    assert loads_torch == "False"


def test_convert_runs_there(python: Path, project: Path) -> None:
    code = (
        "import rebase; result = rebase.convert('tiny/harbor-sql-lora', 'tiny/harbor-2', out='out');"
        "print(result.verdict)"
    )
    assert _run(python, project, "-c", code).split() == ["compatible"]
    assert (project / "out" / "adapter_model.safetensors").is_file()


def test_the_command_lists_methods_there(python: Path, project: Path) -> None:
    assert "cross_lora" in _run(python, project, "-m", "rebase", "methods")
