"""What a request may name."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

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
