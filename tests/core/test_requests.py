"""What a request may name."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from core.pools import PoolRequest
from core.requests import RepoRef


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
