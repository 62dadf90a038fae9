"""`--pool FILE.json`: anchors from folders and hub repos, without a service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rebase.cli.request import build_request
from rebase.conversion.pool_files import FilePool, read_local_pool
from rebase.errors import NotFound, RequestInvalid
from rebase.hub.aliases import FolderAliases
from support.command import Command
from support.tiny_pools import MIXTURE, make_anchors, make_mixture
from support.tiny_repos import NEW, OLD, OTHER, make_hub

WARN = ("--set", "precheck.on_incompatible=warn")
RIDGE = ("--method", "anchor_ridge", "--set", "penalty=1e-9")
EXACT = ("--set", "output.dtype=float32")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_hub(tmp_path_factory.mktemp("hub"))
    make_anchors(root)
    make_mixture(root)
    return root


@pytest.fixture
def here(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Standing in the folder with the models, with a home of our own."""
    monkeypatch.chdir(hub)
    monkeypatch.setenv("REBASE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("REBASE_DEVICE", "cpu")
    monkeypatch.delenv("REBASE_HUB_DIR", raising=False)
    return tmp_path


def anchors(form: str, count: int = 4) -> list[dict[str, Any]]:
    """Anchors whose references are folders, short names or objects."""

    def ref(name: str) -> Any:
        return {"repo_id": name} if form == "object" else f"{name}@main" if form == "name" else name

    return [
        {"source": ref(f"acme/task-{n}-old"), "target": ref(f"acme/task-{n}-new"), "domain": f"d{n}"}
        for n in range(count)
    ]


def write(folder: Path, body: Any) -> str:
    (folder / "pool.json").write_text(json.dumps(body))
    return str(folder / "pool.json")


def updates(folder: Path) -> dict[str, torch.Tensor]:
    """Module → dense update."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    return {
        name: scale * tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
        for name in tensors
        if "lora_A" in name
    }


def is_the_mixture(out: Path, hub: Path) -> bool:
    """MIXTURE is a mixture of anchors that are the same on both bases: so must its prediction be."""
    found, wanted = updates(out), updates(hub / MIXTURE)
    return set(found) == set(wanted) and all(
        torch.allclose(found[name], wanted[name], rtol=1e-3, atol=1e-3 * float(wanted[name].norm()))
        for name in wanted
    )


def test_folders_are_anchors_and_the_bases_are_those_of_the_command(
    here: Path, hub: Path, rebase: Command
) -> None:
    file = write(hub, {"anchors": anchors("folder")})
    command = ("transfer", MIXTURE, "--source", OLD, "--target", NEW, *RIDGE, *EXACT, *WARN, "--pool", file)

    done = rebase(*command, "--out", str(here / "out"), "--report", str(here / "report.json"))

    assert done.code == 0, done.err
    assert is_the_mixture(here / "out", hub)
    pool = json.loads((here / "report.json").read_text())["pool"]
    assert [anchor["source"]["repo_id"] for anchor in pool["anchors"]] == [
        str(hub / f"acme/task-{n}-old") for n in range(4)
    ]


@pytest.mark.parametrize("form", ["name", "object"])
def test_repos_of_a_hub_are_anchors_by_name(here: Path, hub: Path, rebase: Command, form: str) -> None:
    body = {"source": {"repo_id": OLD}, "target": NEW, "anchors": anchors(form)}
    file = write(here, body)  # beside no folders, so that names can only be repos
    away = ("--hub", str(hub), *RIDGE, *EXACT, *WARN, "--pool", file, "--out", str(here / "out"))

    done = rebase("transfer", f"{MIXTURE}@main", "--target", f"{NEW}@main", "--source", f"{OLD}@main", *away)

    assert done.code == 0, done.err
    assert is_the_mixture(here / "out", hub)


def test_folders_are_looked_for_beside_the_file_and_not_where_the_command_stands(
    here: Path, hub: Path, rebase: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(hub, {"anchors": anchors("folder")})
    monkeypatch.chdir(here)
    (here / "acme" / "task-0-old").mkdir(parents=True)
    bases = ("--source", str(hub / OLD), "--target", str(hub / NEW))

    done = rebase("transfer", str(hub / MIXTURE), *bases, *RIDGE, *WARN, "--pool", file, "--out", "out")

    assert done.code == 0, done.err


def test_a_local_precheck_judges_with_the_pool(here: Path, hub: Path, rebase: Command) -> None:
    file = write(hub, {"anchors": anchors("folder")})
    command = ("precheck", MIXTURE, "--source", OLD, "--target", NEW, *RIDGE, "--local", "--pool", file)

    found = json.loads(rebase(*command, "--json").out)

    assert found["measurements"]["loo_error"] >= 0
    assert "pool_error" in {reason["code"] for reason in found["reasons"]}


def test_a_pool_of_other_bases_is_an_error_that_names_them(here: Path, hub: Path, rebase: Command) -> None:
    file = write(hub, {"source": OTHER, "anchors": anchors("folder")})
    command = ("transfer", MIXTURE, "--source", OLD, "--target", NEW, *RIDGE, "--pool", file)

    done = rebase(*command, "--out", str(here / "out"))

    assert done.code == 3
    assert "other" in done.err and "source base" in done.err
    assert not (here / "out").exists()


def test_a_pool_is_for_methods_that_predict_and_is_named_once(here: Path, hub: Path, rebase: Command) -> None:
    file = write(hub, {"anchors": anchors("folder")})
    command = (
        "transfer",
        MIXTURE,
        "--source",
        OLD,
        "--target",
        NEW,
        "--pool",
        file,
        "--out",
        str(here / "out"),
    )

    copy = rebase(*command, "--method", "copy")
    twice = rebase(*command, *RIDGE, "--set", f'pool="{"0" * 32}"')

    assert (copy.code, twice.code) == (2, 2)
    assert "anchor_ridge and auto" in copy.err
    assert "Two pools" in twice.err


def test_a_service_is_given_no_pool_file(here: Path, rebase: Command) -> None:
    done = rebase("precheck", "a/b", "--target", "c/d", "--pool", "x.json", "--url", "http://127.0.0.1:1")
    assert done.code == 2
    assert "--local" in done.err


def test_a_local_run_knows_no_registered_pool(here: Path, rebase: Command) -> None:
    command = ("transfer", MIXTURE, "--source", OLD, "--target", NEW, "--method", "anchor_ridge")
    done = rebase(*command, "--set", f'pool="{"0" * 32}"', "--out", str(here / "out"))
    assert done.code == 1
    assert "no anchor pool" in done.err


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"anchors": [{"source": "nowhere/", "target": "a/b"}]}, ["anchors[0].source", "nowhere/"]),
        ({"anchors": [{"source": "a/b@", "target": "a/b"}]}, ["anchors[0].source", "without a revision"]),
        ({"anchors": [{"source": "", "target": "a/b"}]}, ["anchors[0].source"]),
        ({"anchors": [{"source": 7, "target": "a/b"}] * 2}, ["anchors[0].source", "dictionary"]),
        ({"anchors": anchors("name", 1)}, ["anchors", "at least 2"]),
        ({"anchors": [*anchors("name", 2), *anchors("name", 1)]}, ["anchors[2].source is anchors[0].source"]),
        ({"anchors": "all"}, ["anchors", "valid tuple"]),
        ({}, ["anchors", "required"]),
        ({"anchors": anchors("name"), "domain": "sql"}, ["domain", "unknown field"]),
        ({"target": "acme/old", "anchors": anchors("name")}, ["same base model"]),
    ],
)
def test_a_file_that_is_wrong_is_told_by_field(
    here: Path, rebase: Command, body: Any, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    bases = ("--source", "acme/old", "--target", "acme/new")
    done = rebase("transfer", "a/b", *bases, *RIDGE, "--pool", write(here, body), "--out", "out")
    assert done.code == 2, done.err
    for word in ("pool.json", *words):
        assert word in done.err


def test_folders_of_one_name_are_anchors_of_their_own(tmp_path: Path) -> None:
    for name in ("one/old", "two/old", "one/new", "two/new"):
        (tmp_path / name).mkdir(parents=True)
    body = {"anchors": [{"source": f"{n}/old", "target": f"{n}/new"} for n in ("one", "two")]}
    request = build_request(adapter="a/b", source="a/s", target="a/t@v2", method="anchor_ridge")
    aliases = FolderAliases()

    pool = read_local_pool(write(tmp_path, body), request, aliases)

    assert sorted(aliases.folders.values()) == sorted(
        str(tmp_path / name) for name in ("one/old", "two/old", "one/new", "two/new")
    )
    assert len({str(ref) for anchor in pool.spec.anchors for ref in (anchor.source, anchor.target)}) == 4
    assert (str(pool.spec.source), str(pool.spec.target)) == ("a/s@main", "a/t@v2")


def test_a_file_pool_covers_whatever_it_is_asked_about_and_has_no_id(tmp_path: Path) -> None:
    request = build_request(adapter="a/b", source="a/s", target="a/t", method="auto")
    pool = read_local_pool(write(tmp_path, {"anchors": anchors("name")}), request, FolderAliases())

    covering = pool.find_for_bases("any/base", "any/other")
    assert covering is not None and covering.id is None
    assert covering.spec == pool.spec == FilePool(pool.spec).spec
    with pytest.raises(NotFound):
        pool.get("0" * 32)


def test_the_source_base_must_be_named_somewhere(tmp_path: Path) -> None:
    request = build_request(adapter="a/b", target="a/t", method="anchor_ridge")
    file = write(tmp_path, {"anchors": anchors("name")})

    with pytest.raises(RequestInvalid, match="source"):
        read_local_pool(file, request, FolderAliases())
