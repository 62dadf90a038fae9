"""A subscription's guards, the facts of a release, and the violations. Pure functions."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

ModelKind = Literal["any", "instruct", "base"]
MAX_JOBS = 200
_MAX_NUMBER = 2**62
_WORD_SEPARATOR = re.compile(r"[-_.]+")
# How `kind` is decided: by a word of the name, else by a tag, else it is a base.
BASE_WORDS = frozenset({"base", "pt", "pretrain", "pretrained"})
INSTRUCT_WORDS = frozenset(
    {"instruct", "chat", "it", "sft", "dpo", "rlhf", "assistant", "thinking", "reasoning"}
)
INSTRUCT_TAGS = frozenset({"conversational", "instruct", "chat", "instruction-tuned"})


class Guards(BaseModel):
    """Conditions a release must meet to start a campaign, and the maximum size of a campaign."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_bytes: int | None = Field(default=None, ge=0, le=_MAX_NUMBER, description="Size of the weight files.")
    max_bytes: int | None = Field(default=None, ge=0, le=_MAX_NUMBER)
    min_parameters: int | None = Field(
        default=None, ge=0, le=_MAX_NUMBER, description="Number of parameters in all tensors."
    )
    max_parameters: int | None = Field(default=None, ge=0, le=_MAX_NUMBER)
    kind: ModelKind = Field(
        default="any",
        description="`instruct` or `base`, by a word of the name (instruct, chat, it, …; base, pt, …), "
        "else by the tag `conversational`, `instruct` or `chat`, else a base.",
    )
    licences: tuple[Annotated[str, Field(min_length=1, max_length=100)], ...] | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description="Licences allowed in the release's card (`license` or `license_name`); null: any.",
    )
    max_jobs: int = Field(
        default=50, ge=1, le=MAX_JOBS, description="Maximum adapters per release; the rest are left out."
    )

    @field_validator("licences")
    @classmethod
    def _casefold_licenses(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return tuple(name.strip().casefold() for name in value) if value is not None else None

    @model_validator(mode="after")
    def _validate_ranges(self) -> Guards:
        for quantity in ("bytes", "parameters"):
            low, high = getattr(self, f"min_{quantity}"), getattr(self, f"max_{quantity}")
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{quantity} is above max_{quantity}: no release can pass")
        return self


class ModelFacts(BaseModel):
    """The Hub's metadata of a release, read anew by the worker."""

    model_config = ConfigDict(frozen=True)

    repo_id: str
    sha: str
    created_at: datetime | None
    bytes: int
    parameters: int
    model_type: str | None
    licences: tuple[str, ...]
    tags: tuple[str, ...]
    content: str  # a digest of every file that affects the model's output

    @property
    def kind(self) -> Literal["instruct", "base"]:
        """Decided as described above."""
        words = set(_WORD_SEPARATOR.split(self.repo_id.rpartition("/")[2].casefold()))
        if words & INSTRUCT_WORDS:
            return "instruct"
        if words & BASE_WORDS:
            return "base"
        return "instruct" if {tag.casefold() for tag in self.tags} & INSTRUCT_TAGS else "base"


class GuardViolation(BaseModel):
    """Why a release started no campaign, or an adapter got no job."""

    code: str
    message: str


def find_violations(guards: Guards, facts: ModelFacts, since: datetime) -> list[GuardViolation]:
    """All reasons against a campaign; empty if there are none."""
    violations = [
        *_find_age_violations(facts, since),
        *_find_size_violations(guards, facts),
        *_find_kind_violations(guards, facts),
        *_find_license_violations(guards, facts),
    ]
    return [GuardViolation(code=code, message=message) for code, message in violations]


def _find_age_violations(facts: ModelFacts, since: datetime) -> list[tuple[str, str]]:
    if facts.created_at is None or facts.created_at >= since:
        return []
    return [
        (
            "existed_before",
            f"The repo was created at {facts.created_at:%Y-%m-%d %H:%M:%S} UTC, before this subscription's "
            f"'since' ({since:%Y-%m-%d %H:%M:%S} UTC).",
        )
    ]


def _find_size_violations(guards: Guards, facts: ModelFacts) -> list[tuple[str, str]]:
    violations = []
    values: dict[str, Any] = {"bytes": facts.bytes, "parameters": facts.parameters}
    for quantity, value in values.items():
        low, high = getattr(guards, f"min_{quantity}"), getattr(guards, f"max_{quantity}")
        if low is not None and value < low:
            violations.append(
                (f"min_{quantity}", f"The release has {value} {quantity}; at least {low} are required.")
            )
        if high is not None and value > high:
            violations.append(
                (f"max_{quantity}", f"The release has {value} {quantity}; at most {high} are allowed.")
            )
    return violations


def _find_kind_violations(guards: Guards, facts: ModelFacts) -> list[tuple[str, str]]:
    if guards.kind in ("any", facts.kind):
        return []
    return [("kind", f"By its name and tags the release is '{facts.kind}'; '{guards.kind}' is required.")]


def _find_license_violations(guards: Guards, facts: ModelFacts) -> list[tuple[str, str]]:
    if guards.licences is None:
        return []
    license_names = [name.casefold() for name in facts.licences]
    if any(name in guards.licences for name in license_names):
        return []
    card_statement = (
        f"names the licence '{', '.join(facts.licences)[:200]}'" if license_names else "names no licence"
    )
    return [("licence", f"The release's card {card_statement}; allowed: {', '.join(guards.licences)[:300]}.")]
