"""What a request may name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from rebase.schemas.anchor_pools import PoolRequest
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.repos import RepoRef
from rebase.schemas.subscriptions import SubscriptionRequest


@pytest.mark.parametrize(
    "repo_id", ["acme/x\n", "\nacme/x", "acme/x\n# y", "acme/x y", "acme//x", "../x", "acme/x.git", "/etc"]
)
def test_a_repo_id_is_one_line_and_no_path(repo_id: str) -> None:
    with pytest.raises(ValidationError):
        RepoRef(repo_id=repo_id)


@pytest.mark.parametrize("revision", ["", "main\n", " main", "-x", "a b"])
def test_a_revision_is_one_word(revision: str) -> None:
    with pytest.raises(ValidationError):
        RepoRef(repo_id="acme/x", revision=revision)


def test_a_pool_has_a_name_that_can_be_shown() -> None:
    body = {
        "source": {"repo_id": "acme/old"},
        "target": {"repo_id": "acme/new"},
        "anchors": [
            {"source": {"repo_id": f"acme/o{n}"}, "target": {"repo_id": f"acme/n{n}"}} for n in range(2)
        ],
    }
    assert PoolRequest.model_validate(body | {"name": "Häfen und Lieder"}).name == "Häfen und Lieder"
    for name in ("a\x00b", "a\nb", "\x1b[2J"):
        with pytest.raises(ValidationError, match="printable"):
            PoolRequest.model_validate(body | {"name": name})


CONVERSION = {"adapter": {"repo_id": "acme/lora"}, "target": {"repo_id": "acme/new"}}
SUBSCRIPTION = {"bases": "acme/new-*", "adapters": [{"repo_id": "acme/lora"}]}


@pytest.mark.parametrize(
    ("model", "body"), [(ConversionRequest, CONVERSION), (SubscriptionRequest, SUBSCRIPTION)]
)
@pytest.mark.parametrize(
    "further",
    [
        {"evaluate": {"examples": [{"text": "a text"}, {"prompt": "a", "answer": "b\0"}]}},
        {"evaluate": {"examples": [{"text": "a text"}], "stop": ["\0"]}},
        {"corpus": {"repo_id": "acme/texts", "column": "te\0xt"}},
        {"method": {"name": "distill", "prompts": ["Sail\0"]}},
    ],
)
def test_a_text_that_postgresql_cannot_look_into_is_refused(
    model: type[BaseModel], body: dict[str, Any], further: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError, match=r"U\+0000 at '/(evaluate|corpus|method)/"):
        model.model_validate(body | further)


def test_a_request_that_is_nested_without_end_is_refused_and_nothing_else() -> None:
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(ValidationError):
        ConversionRequest.model_validate(CONVERSION | {"evaluate": deep})
