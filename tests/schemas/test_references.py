"""How people name repos: short forms, pasted addresses, and folders inside a repo."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from rebase.errors import RequestInvalid
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.repos import CorpusSpec, RepoRef, parse_repo
from rebase.schemas.subscriptions import SubscriptionRequest
from rebase.store.job_submission import compute_fingerprint

HUB = "https://huggingface.co"
SHA = "0123456789abcdef" * 2 + "01234567"


def fields(repo_id: str, revision: str | None = None, subfolder: str | None = None) -> dict[str, str]:
    every = {"repo_id": repo_id, "revision": revision, "subfolder": subfolder}
    return {name: value for name, value in every.items() if value is not None}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("acme/x", fields("acme/x")),
        ("acme/x@v1", fields("acme/x", "v1")),
        ("acme/x@refs/pr/3", fields("acme/x", "refs/pr/3")),
        ("acme/x:checkpoint-500", fields("acme/x", None, "checkpoint-500")),
        ("acme/x@v1:a/b", fields("acme/x", "v1", "a/b")),
        ("acme/x@refs/pr/3:a/b/", fields("acme/x", "refs/pr/3", "a/b")),
        ("acme/x:a@b", fields("acme/x", None, "a@b")),
        (f"{HUB}/acme/x", fields("acme/x")),
        (f"{HUB}/acme/x/", fields("acme/x")),
        (f"{HUB}/gpt2", fields("gpt2")),
        (f"{HUB}/gpt2/tree/main", fields("gpt2", "main")),
        ("http://hf.co/acme/x", fields("acme/x")),
        ("huggingface.co/acme/x", fields("acme/x")),
        ("HTTPS://HuggingFace.co/acme/x?library=peft#files", fields("acme/x")),
        (f"{HUB}/acme/x/tree/main", fields("acme/x", "main")),
        (f"{HUB}/acme/x/tree/v1/sub/folder", fields("acme/x", "v1", "sub/folder")),
        (f"{HUB}/acme/x/tree/refs%2Fpr%2F3/sub", fields("acme/x", "refs/pr/3", "sub")),
        (f"{HUB}/acme/x/tree/refs/pr/3/sub", fields("acme/x", "refs/pr/3", "sub")),
        (f"{HUB}/acme/x/tree/feature%2Fsql", fields("acme/x", "feature/sql")),
        (f"{HUB}/acme/x/tree/main/my%20run", fields("acme/x", "main", "my run")),
        (f"{HUB}/acme/x/blob/main/adapter_model.safetensors", fields("acme/x", "main")),
        (f"{HUB}/acme/x/blob/main/sql/adapter_config.json", fields("acme/x", "main", "sql")),
        (
            f"{HUB}/acme/x/resolve/v1/a/b/adapter_model.safetensors?download=true",
            fields("acme/x", "v1", "a/b"),
        ),
        (f"{HUB}/acme/x/commit/{SHA}", fields("acme/x", SHA)),
    ],
)
def test_a_reference_is_read_as_people_write_it(text: str, named: dict[str, str]) -> None:
    assert parse_repo(text, field="adapter") == named


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("acme/x@", "without a revision"),
        ("acme/x:", "without a subfolder"),
        ("acme/x:../y", "without '..'"),
        ("acme/x:/etc", "relative folder"),
        ("acme/x:a\\b", "backslash"),
        ("acme/x:a\nb", "printable"),
        (f"acme/x:{'a' * 251}", "250"),
        ("https://github.com/acme/x", "'github.com', which is not the Hub"),
        ("https://huggingface.co.example.com/acme/x", "which is not the Hub"),
        (f"{HUB}/", "names no repo"),
        (f"{HUB}/datasets/acme/x", "something else than a model: 'datasets'"),
        (f"{HUB}/acme/x/discussions/3", "a page about the repo"),
        (f"{HUB}/acme/x/tree/main/%2E%2E/%2E%2E/y", "without '..'"),
        (f"{HUB}/acme/x/tree/main/a%5Cb", "backslash"),
    ],
)
def test_a_reference_that_means_nothing_is_refused_with_its_cause(text: str, cause: str) -> None:
    with pytest.raises(RequestInvalid, match=r"^adapter: ") as caught:
        parse_repo(text, field="adapter")
    assert cause in caught.value.message
    assert caught.value.pointer == "/adapter"


def test_an_address_with_a_password_is_not_repeated() -> None:
    with pytest.raises(RequestInvalid, match="a user or a password") as caught:
        parse_repo("https://user:hf_secret@huggingface.co/acme/x", field="adapter")
    assert "hf_secret" not in caught.value.message


def test_the_deployments_own_hub_is_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example:8080/hub/")
    address = "http://mirror.example:8080/hub/acme/x/tree/v1/sql"
    assert parse_repo(address, field="adapter") == fields("acme/x", "v1", "sql")
    assert parse_repo(f"{HUB}/acme/x", field="adapter") == fields("acme/x")
    for outside in ("http://mirror.example:8080/acme/x", "http://mirror.example/hub/acme/x"):
        with pytest.raises(RequestInvalid, match="Hub"):
            parse_repo(outside, field="adapter")


def test_an_address_in_a_request_becomes_its_fields() -> None:
    ref = RepoRef.model_validate({"repo_id": f"{HUB}/acme/x/tree/v1/sql"})
    assert ref == RepoRef(repo_id="acme/x", revision="v1", subfolder="sql")
    assert str(ref) == "acme/x@v1:sql"
    assert RepoRef.model_validate({"repo_id": f"{HUB}/acme/x", "revision": "v2"}).revision == "v2"


@pytest.mark.parametrize(
    ("extra", "both"),
    [
        ({"revision": "v2"}, ("'v1'", "'v2'")),
        ({"revision": "v1", "subfolder": "poems"}, ("'sql'", "'poems'")),
    ],
)
def test_an_address_that_contradicts_a_field_names_both(extra: dict[str, str], both: tuple[str, str]) -> None:
    with pytest.raises(ValidationError) as caught:
        RepoRef.model_validate({"repo_id": f"{HUB}/acme/x/tree/v1/sql", **extra})
    assert all(one in str(caught.value) for one in both)


@pytest.mark.parametrize(
    "subfolder", ["..", "a/../b", "/etc", "a//b", "a\\b", "./a", " a", "a\x00", "a" * 251]
)
def test_a_subfolder_stays_inside_the_repo(subfolder: str) -> None:
    with pytest.raises(ValidationError, match="subfolder"):
        RepoRef(repo_id="acme/x", subfolder=subfolder)


def test_an_empty_subfolder_is_the_top_folder() -> None:
    assert RepoRef(repo_id="acme/x", subfolder="") == RepoRef(repo_id="acme/x")


def conversion(adapter: dict[str, Any]) -> ConversionRequest:
    return ConversionRequest.model_validate({"adapter": adapter, "target": {"repo_id": "acme/new"}})


def test_a_reference_without_a_subfolder_is_stored_as_before() -> None:
    assert conversion({"repo_id": "acme/x"}).model_dump()["adapter"] == fields("acme/x", "main")


def test_two_subfolders_are_two_requests_and_two_spellings_of_one_are_the_same() -> None:
    sql, poems, pasted = (
        compute_fingerprint("convert", conversion(adapter))
        for adapter in (
            fields("acme/x", "main", "sql"),
            fields("acme/x", "main", "poems"),
            fields(f"{HUB}/acme/x/tree/main/sql"),
        )
    )
    assert sql == pasted != poems


def test_a_subscription_may_follow_several_adapters_of_one_repo() -> None:
    adapters = [fields("acme/x", None, name) for name in ("sql", "poems")]
    spec = SubscriptionRequest.model_validate({"bases": "acme/new-*", "adapters": adapters})
    assert [adapter.output_stem for adapter in spec.adapters] == ["acme/x-sql", "acme/x-poems"]
    with pytest.raises(ValidationError, match="names an adapter twice"):
        SubscriptionRequest.model_validate({"bases": "acme/new-*", "adapters": [adapters[0], adapters[0]]})


def test_a_dataset_is_named_by_its_address_too() -> None:
    spec = CorpusSpec.model_validate({"repo_id": f"{HUB}/datasets/acme/texts/tree/v1"})
    assert (spec.repo_id, spec.revision) == ("acme/texts", "v1")
    for wrong in (f"{HUB}/acme/texts", f"{HUB}/datasets/acme/texts/tree/v1/data"):
        with pytest.raises(ValidationError, match=r"dataset|folder"):
            CorpusSpec.model_validate({"repo_id": wrong})
