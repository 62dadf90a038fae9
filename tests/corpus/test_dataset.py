"""Text from dataset repos: a folder as the hub, and the real Hub client against a server over HTTP."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.corpus.corpus import Corpus
from rebase.corpus.dataset_rows import ByteSourceStream, ReadBudget, iter_documents
from rebase.corpus.load import choose_files, load_corpus
from rebase.errors import (
    FileMissing,
    NotAvailable,
    RebaseError,
    RepoGated,
    RepoNotFound,
    RequestInvalid,
    UnsafeFile,
)
from rebase.hub.aliases import AliasedHub
from rebase.hub.base import Hub
from rebase.hub.local import LocalHub
from rebase.hub.remote import RemoteHub
from rebase.schemas.repos import CorpusSpec, RepoRef
from support.standin_hub import StandinHub

Files = dict[str, bytes]


@dataclass
class Place:
    """A hub, and a way to put datasets into it that does not go through the port."""

    hub: Hub
    add: Callable[[Path], object]
    folder: Path

    def holds(self, files: Files) -> None:
        for path, content in files.items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_bytes(content)
        self.add(self.folder)

    def read(self, **fields: Any) -> Corpus:
        return load_corpus(None, CorpusSpec(repo_id="acme/texts", **fields), self.hub)

    def refusal(self, **fields: Any) -> RebaseError:
        with pytest.raises(RebaseError) as caught:
            self.read(**fields)
        return caught.value


@pytest.fixture(params=["local", "remote"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "local":
        goal = tmp_path / "hub" / "datasets" / "acme" / "texts"
        yield Place(
            LocalHub(tmp_path / "hub"), lambda folder: shutil.copytree(folder, goal), tmp_path / "data"
        )
        return
    with StandinHub() as server:
        hub = RemoteHub(
            server.add_token("hf_acme", user="acme"),
            server.url,
            tmp_path / "cache",
            timeout_s=10,
            wait_s=0.01,
        )
        yield Place(hub, lambda folder: server.add_repo("datasets/acme/texts", folder), tmp_path / "data")


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(rows: dict[str, list[Any]], **options: Any) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    sink = io.BytesIO()
    parquet.write_table(pa.table(rows), sink, **options)
    return sink.getvalue()


SAME = ["one", "  two\n", "", "one", "three, with “quotes”", "four"]
READ = ("one", "two", "three, with “quotes”", "four")


def as_csv() -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([["id", "text"], *enumerate(SAME)])
    return text.getvalue().encode()


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("train.jsonl", lines(*({"id": n, "text": text} for n, text in enumerate(SAME)))),
        ("train.json", json.dumps([{"text": text} for text in SAME], indent=1).encode()),
        ("train.csv", as_csv()),
        ("train.txt", "\n\n".join(SAME).encode()),
        ("data/train-00000-of-00001.parquet", table({"id": list(range(6)), "text": SAME})),
    ],
)
def test_every_format_gives_the_same_documents(place: Place, path: str, content: bytes) -> None:
    place.holds({path: content, "README.md": b"---\nlicense: cc0-1.0\n---\n# Texts\n"})
    corpus = place.read()
    assert corpus.documents == READ
    assert corpus.digest == Corpus.from_documents(READ, "x").digest
    assert corpus.license_id == "cc0-1.0"
    sha = place.hub.resolve(RepoRef(repo_id="acme/texts"), kind="dataset").sha
    assert corpus.name == f"acme/texts@{sha} (train, text)"


def test_shards_are_read_in_their_order_and_only_as_far_as_asked(place: Place) -> None:
    place.holds(
        {
            "data/train-00001-of-00003.jsonl": lines({"text": "c"}, {"text": "b"}, {"text": "d"}),
            "data/train-00000-of-00003.jsonl": lines({"text": "a"}, {"text": "b"}),
            "data/train-00002-of-00003.jsonl": b"nothing that could be read",
        }
    )
    assert place.read(n=4).documents == ("a", "b", "c", "d")


def test_split_configuration_and_column_are_those_that_are_named(place: Place) -> None:
    place.holds(
        {
            f"{config}/{split}-00000-of-00001.jsonl": lines({"body": f"{config} {split}"})
            for config in ("en", "de")
            for split in ("train", "test")
        }
    )
    corpus = place.read(config="de", split="test", column="body")
    assert corpus.documents == ("de test",)
    assert corpus.name.endswith("(de, test, body)")


def test_what_cannot_be_found_is_said_with_what_there_is(place: Place) -> None:
    place.holds({"en/train.jsonl": lines({"text": "x"}), "de/train.jsonl": lines({"text": "y"})})
    ambiguous = place.refusal()
    assert isinstance(ambiguous, FileMissing)
    assert "2 sets of files" in ambiguous.message
    assert "de/train.jsonl, en/train.jsonl" in ambiguous.message
    assert ambiguous.pointer == "/corpus/config"
    assert "no file of split 'test'" in place.refusal(split="test").message
    missing = place.refusal(config="en", column="body")
    assert isinstance(missing, RequestInvalid)
    assert (missing.pointer, "its columns: text" in missing.message) == ("/corpus/column", True)


def test_a_dataset_is_no_model_and_a_model_no_dataset(place: Place) -> None:
    place.holds({"train.txt": b"text"})
    with pytest.raises(RepoNotFound):
        place.hub.check_read("acme/texts")
    with pytest.raises(RepoNotFound):
        place.hub.resolve(RepoRef(repo_id="acme/texts"))
    assert isinstance(place.refusal(revision="v9"), RebaseError)


def test_an_empty_text_is_refused(place: Place) -> None:
    place.holds({"train.jsonl": lines({"text": ""}, {"text": None})})
    assert "has no text" in place.refusal().message


def test_a_parquet_column_must_hold_strings(place: Place) -> None:
    place.holds({"train.parquet": table({"text": [1, 2], "body": ["a", "b"]})})
    refusal = place.refusal()
    assert (refusal.code, refusal.pointer) == ("request_invalid", "/corpus/column")
    assert "body" in refusal.message
    assert place.read(column="body").documents == ("a", "b")


@pytest.mark.parametrize(
    ("path", "content", "says"),
    [
        ("train.jsonl", b'{"text": "x"}\nnonsense', "not valid JSON in line 2"),
        ("train.jsonl", b"[" * 100_000, "not valid JSON in line 1"),
        ("train.jsonl", b"5\n", "not objects"),
        ("train.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("train.csv", b'text\n"a"b"\n', "not valid CSV"),
        ("train.csv", b"", "no column 'text'"),
        ("train.parquet", b"PAR1 and then nothing PAR1", "not a readable Parquet file"),
        ("train.parquet", b"", "not a readable Parquet file"),
        ("train.py", b"print()", "no data file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(place: Place, path: str, content: bytes, says: str) -> None:
    place.holds({path: content, "notes.md": b"x"})
    refusal = place.refusal()
    assert says in refusal.message
    assert refusal.pointer.startswith("/corpus")


def test_without_pyarrow_the_extra_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.holds({"train.parquet": table({"text": ["x"]})})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refusal = place.refusal()
    assert isinstance(refusal, NotAvailable)
    assert "extra 'datasets'" in str(refusal.hint)


def test_folders_of_the_command_line_leave_datasets_to_the_hub(place: Place, tmp_path: Path) -> None:
    place.holds({"train.txt": b"text"})
    hub = AliasedHub(place.hub, {"acme/texts": str(place.folder)}, tmp_path / "hashes")
    assert load_corpus(None, CorpusSpec(repo_id="acme/texts"), hub).documents == ("text",)


def test_a_file_and_a_dataset_are_one_text_too_many(place: Place, tmp_path: Path) -> None:
    with pytest.raises(RequestInvalid, match="Two texts"):
        load_corpus(tmp_path / "x.txt", CorpusSpec(repo_id="acme/texts"), place.hub)


def test_a_gated_dataset_is_refused_even_when_its_files_are_cached(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.txt").write_text("text")
    with StandinHub() as server:
        server.add_token("hf_acme", user="acme")
        server.add_token("hf_other", user="other")
        server.add_repo("datasets/acme/texts", tmp_path / "data", gated=True)
        spec = CorpusSpec(repo_id="acme/texts")

        def read(token: str) -> Corpus:
            return load_corpus(None, spec, RemoteHub(token, server.url, tmp_path / "cache", wait_s=0.01))

        assert read("hf_acme").documents == ("text",)
        with pytest.raises(RepoGated) as caught:
            read("hf_other")
        assert caught.value.pointer == "/corpus"


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_of_a_large_file_only_the_beginning_crosses_the_network(tmp_path: Path, suffix: str) -> None:
    rows = [f"{n} " + "some words that fill the row " * 150 for n in range(3000)]
    content = (
        lines(*({"text": row} for row in rows))
        if suffix == "jsonl"
        else table({"text": rows}, row_group_size=500, compression="none", use_dictionary=False)
    )
    assert len(content) > 11 * 2**20
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"train.{suffix}").write_bytes(content)
    with StandinHub() as server:
        server.add_repo("datasets/acme/texts", tmp_path / "data")
        hub = RemoteHub(None, server.url, tmp_path / "cache", wait_s=0.01)
        corpus = load_corpus(None, CorpusSpec(repo_id="acme/texts", n=20), hub)
        asked = [
            r.headers["range"] for r in server.requests if "range" in r.headers and "storage" not in r.path
        ]
    assert corpus.documents == tuple(row.strip() for row in rows[:20])
    assert asked
    edges = [range_.removeprefix("bytes=").split("-") for range_ in asked]
    assert sum(int(last) - int(first) + 1 for first, last in edges) < 4 * 2**20


class Held:
    """Bytes in memory as the hub gives them."""

    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self._content = content

    def read(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read(offset, len(buffer))


def read_bytes(content: bytes, name: str, budget: int = 2**20) -> list[str]:
    return list(iter_documents(ByteSourceStream(Held(content), name, ReadBudget(budget)), name, "text"))


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(TEXT), st.booleans())
def test_json_lines_give_exactly_what_was_written(rows: list[str], ascii_only: bool) -> None:
    content = "".join(json.dumps({"text": row}, ensure_ascii=ascii_only) + "\n" for row in rows)
    assert read_bytes(content.encode(), "a.jsonl") == rows
    whole = json.dumps([{"text": row} for row in rows], ensure_ascii=ascii_only)
    assert read_bytes(whole.encode(), "a.json") == rows


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]))))
def test_a_csv_gives_exactly_what_was_written(rows: list[str]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([["text", "n"], *([row, 1] for row in rows)])
    assert read_bytes(text.getvalue().encode(), "a.csv") == rows


@given(TEXT)
def test_of_plain_text_nothing_but_empty_lines_is_lost(text: str) -> None:
    found = "\n".join(read_bytes(text.encode(), "a.txt"))
    assert found.split() == text.removeprefix("\ufeff").split()


def test_more_than_the_budget_is_never_read() -> None:
    content = lines(*({"text": f"{n}" * 50} for n in range(1000)))
    with pytest.raises(UnsafeFile, match="would have to be read"):
        read_bytes(content, "a.jsonl", budget=1000)
    with pytest.raises(UnsafeFile, match="would have to be read"):
        read_bytes(table({"text": ["x" * 4000]}), "a.parquet", budget=20)


@pytest.mark.parametrize(
    ("paths", "fields", "chosen"),
    [
        (["data/train-00000-of-00001-a09b74b3ef9c3b56.parquet", "data/test-00000-of-00001.parquet"], {}, [0]),
        (["wiki/train/0000.parquet", "wiki/train/0001.parquet", "other/train/0000.parquet"],
         {"config": "wiki"}, [0, 1]),
        (["en-train.jsonl", "de-train.jsonl"], {"config": "en"}, [0]),
        (["train.csv", "train.jsonl"], {}, [1]),
        (["data/train_sft-00000-of-00001.parquet", "data/train_gen-00000-of-00001.parquet"],
         {"split": "train_sft"}, [0]),
        (["train/a.txt", "train/b.txt", "test/a.txt"], {}, [0, 1]),
        (["texts.jsonl", "dataset_infos.json", ".hidden/train.jsonl"], {}, [0]),
        (["pretrain.jsonl", "train.jsonl"], {}, [1]),
    ],
)  # fmt: skip
def test_files_are_told_by_their_names(paths: list[str], fields: dict[str, Any], chosen: list[int]) -> None:
    assert choose_files(paths, CorpusSpec(repo_id="acme/texts", **fields)) == [paths[n] for n in chosen]
