"""Which text both bases are to read, as a request names it."""

from __future__ import annotations

from pydantic import Field

from core.repos import RepoRef

# As the Hub names configurations and splits; neither can be a path.
_NAME_PATTERN = r"^\w[\w.-]*$"


class CorpusSpec(RepoRef):
    """A column of a dataset repo: text that is read from its data files, never by a script of the repo."""

    config: str | None = Field(
        default=None,
        max_length=100,
        pattern=_NAME_PATTERN,
        description="The dataset's configuration (a folder, or the beginning of file names); null where it "
        "has but one.",
    )
    split: str = Field(
        default="train", max_length=100, pattern=_NAME_PATTERN, description="The split to read."
    )
    column: str = Field(
        default="text",
        min_length=1,
        max_length=200,
        description="The column, or the key of JSON lines, that holds a document as a string.",
    )
    n: int = Field(
        default=1000,
        ge=1,
        le=50_000,
        description="Documents to read from the beginning of the split; empty ones and repetitions do not "
        "count.",
    )
