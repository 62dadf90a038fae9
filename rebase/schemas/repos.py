"""References to repos and datasets, as used by every request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from rebase.errors import RequestInvalid
from rebase.schemas.references import MAX_SUBFOLDER, RepoKind, check_subfolder, split_address, split_reference

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


class _RepoAtRevision(BaseModel):
    """A repo at a branch, tag or commit. An address of the Hub as `repo_id` is split into the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: ClassVar[RepoKind] = "model"

    repo_id: RepoId
    revision: str = Field(default="main", min_length=1, max_length=200, pattern=r"^[\w][\w./-]*$")

    _validate_repo_id = field_validator("repo_id")(check_repo_id)

    @model_validator(mode="before")
    @classmethod
    def _split_address(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or not isinstance(value.get("repo_id"), str):
            return value
        fields = split_address(value["repo_id"], kind=cls.kind)
        if fields is None:
            return value
        if "subfolder" in fields and "subfolder" not in cls.model_fields:
            raise ValueError("the address in repo_id names a folder; name the repo alone")
        for name in fields.keys() - {"repo_id"}:
            explicit = value.get(name)
            if explicit is not None and explicit != fields[name]:
                raise ValueError(
                    f"the address in repo_id names the {name} '{fields[name][:100]}', but {name} is "
                    f"'{str(explicit)[:100]}'; give one of them"
                )
        return {**value, **fields}

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.revision}"


class RepoRef(_RepoAtRevision):
    """A model or adapter on the Hub, or in the local hub folder of this deployment, at a branch, tag or
    commit, and if it does not lie at the repo's top, the folder that holds it."""

    repo_id: RepoId = Field(
        description="`owner/name`; an address such as https://huggingface.co/owner/name/tree/main/folder is "
        "split into repo_id, revision and subfolder."
    )
    # Left out where there is none, so that older requests and reports keep their form and fingerprint.
    subfolder: str | None = Field(
        default=None,
        max_length=MAX_SUBFOLDER + 1,
        description="The folder of the repo that holds the model or adapter; null: the repo's top folder.",
        examples=["checkpoint-500"],
        exclude_if=lambda value: value is None,
    )

    @field_validator("subfolder")
    @classmethod
    def _validate_subfolder(cls, value: str | None) -> str | None:
        return check_subfolder(value) if value else None

    @property
    def output_stem(self) -> str:
        """The repo id with the subfolder appended to its name, from which names of outputs are made."""
        suffix = re.sub(r"[^\w.-]+", "-", self.subfolder or "", flags=re.ASCII).strip("-.")
        return f"{self.repo_id}-{suffix}" if suffix else self.repo_id

    def __str__(self) -> str:
        return f"{super().__str__()}:{self.subfolder}" if self.subfolder else super().__str__()


# The corpus: text that both bases read.

# The Hub's rule for configurations and splits; neither can be a path.
_NAME_PATTERN = r"^\w[\w.-]*$"


class CorpusSpec(_RepoAtRevision):
    """A text column of a dataset repo, read from its data files; scripts of the repo are never run."""

    kind: ClassVar[RepoKind] = "dataset"

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
    """`owner/name[@revision][:subfolder]`, or an address of the Hub, as the fields of a RepoRef; the request
    model checks the id itself. Raises RequestInvalid."""
    try:
        return split_reference(text)
    except ValueError as exc:
        # An address is not repeated: it may hold a password.
        subject = "it" if "://" in text else f"'{text}'"
        raise RequestInvalid(f"{field}: {subject} {exc}.", pointer=f"/{field}") from exc
