"""References to repos and datasets, as used by every request."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from rebase.errors import RequestInvalid

# The Hub's rule: letters, digits, '-', '_', '.'; at most 96 characters; no '-' or '.' at either end.
_REPO_ID = re.compile(r"^(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9_][\w.-]*$", re.ASCII)
MAX_REPO_ID = 96


def check_repo_id(value: str) -> str:
    """A repo id as the Hub accepts it (`owner/name`, or a bare legacy name); never a path. Raises
    ValueError."""
    if (
        len(value) > MAX_REPO_ID
        or not _REPO_ID.fullmatch(value)
        or ".." in value
        or value.endswith((".", "-", ".git"))
    ):
        raise ValueError("must be a Hub repo id such as 'owner/name'")
    return value


RepoId = Annotated[str, Field(max_length=200, examples=["acme/qwen-sql-lora"])]


class RepoRef(BaseModel):
    """A repo on the Hub, or in the local hub folder of this deployment, at a branch, tag or commit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    repo_id: RepoId
    revision: str = Field(default="main", min_length=1, max_length=200, pattern=r"^[\w][\w./-]*$")

    _validate_repo_id = field_validator("repo_id")(check_repo_id)

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.revision}"


# The corpus: text that both bases read.

# The Hub's rule for configurations and splits; neither can be a path.
_NAME_PATTERN = r"^\w[\w.-]*$"


class CorpusSpec(RepoRef):
    """A text column of a dataset repo, read from its data files; scripts of the repo are never run."""

    config: str | None = Field(
        default=None,
        max_length=100,
        pattern=_NAME_PATTERN,
        description="The dataset's configuration (a folder, or a prefix of file names); null if it has only "
        "one.",
    )
    split: str = Field(
        default="train", max_length=100, pattern=_NAME_PATTERN, description="The split to read."
    )
    column: str = Field(
        default="text",
        min_length=1,
        max_length=200,
        description="The column, or the key of JSON lines, that contains a document as a string.",
    )
    n: int = Field(
        default=1000,
        ge=1,
        le=50_000,
        description="Documents to read, from the start of the split; empty ones and duplicates do not count.",
    )


RepoFilter = Annotated[str | None, AfterValidator(lambda value: value and check_repo_id(value))]


def parse_repo(text: str, *, field: str) -> dict[str, str]:
    """`owner/name[@revision]` as the fields of a RepoRef; the request model checks the id itself."""
    repo_id, separator, revision = text.partition("@")
    if separator and not revision:
        raise RequestInvalid(f"{field}: '{text}' ends in '@' without a revision.", pointer=f"/{field}")
    return {"repo_id": repo_id, "revision": revision} if separator else {"repo_id": repo_id}
