"""A subscription: when this owner releases such a base, convert these adapters that way."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from core.callbacks.spec import CallbackSpec
from core.corpus import CorpusSpec
from core.evaluation import EvaluationSpec
from core.releases.guards import MAX_JOBS, Guards
from core.releases.names import check_base_repo_id, check_pattern, get_owner
from core.releases.template import DEFAULT_OUTPUT_TEMPLATE, check_distinct_outputs, check_template
from core.repos import RepoRef
from core.requests import OutputSpec, PrecheckSpec
from core.texts import reject_nul
from rebase.methods.auto.params import AutoParams
from rebase.methods.params import AnyMethodParams


class OutputTemplate(OutputSpec):
    """Where moved adapters go and how they are written; `repo_id` is a template."""

    repo_id: str = Field(
        default=DEFAULT_OUTPUT_TEMPLATE,
        description="Fields: {owner} and {adapter} of the adapter, {target_owner} and {target} of the base.",
        examples=[DEFAULT_OUTPUT_TEMPLATE],
    )

    @field_validator("repo_id")
    @classmethod
    def _validate_template(cls, value: str | None) -> str | None:
        return check_template(value) if value is not None else None


_ALLOWED_YEARS = range(
    2000, 2200
)  # dates at the ends of what a computer can count overflow when they are moved


def _wrap_string(key: str) -> BeforeValidator:
    """`"auto"` is short for `{"name": "auto"}`, and a template for `{"repo_id": …}`."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


class SubscriptionRequest(BaseModel):
    """`POST /subscriptions`. Exactly one of `bases` and `successors_of` says which releases are meant."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = Field(default=None, min_length=1, max_length=100, description="For people.")
    bases: str | None = Field(
        default=None,
        max_length=200,
        description="A pattern over one owner's repos, such as `acme/harbor-*`; case does not matter.",
        examples=["acme/harbor-*"],
    )
    successors_of: str | None = Field(
        default=None,
        max_length=200,
        description="A base. Its successors have the same owner and family name, and a higher version.",
    )
    adapters: tuple[RepoRef, ...] = Field(min_length=1, max_length=MAX_JOBS)
    source: RepoRef | None = Field(
        default=None, description="The base of all adapters; null: what each adapter names."
    )
    method: Annotated[AnyMethodParams, _wrap_string("name")] = Field(default_factory=AutoParams)
    output: Annotated[OutputTemplate, _wrap_string("repo_id")] = Field(default_factory=OutputTemplate)
    precheck: PrecheckSpec = Field(default_factory=PrecheckSpec)
    corpus: CorpusSpec | None = None
    evaluate: EvaluationSpec | None = None
    callback: CallbackSpec | None = Field(
        default=None, description="Tell this URL of every conversion, as a request of its own would."
    )
    guards: Guards = Field(default_factory=Guards)
    dry_run: bool = Field(
        default=False, description="Pre-checks first; conversions when the campaign is approved."
    )
    on_update: bool = Field(
        default=False, description="Convert again when a base that was handled gets other weights."
    )
    since: datetime | None = Field(
        default=None,
        description="Repos created since then count as released; null: since the subscription was made. An "
        "earlier date looks at what exists already.",
    )

    @field_validator("name")
    @classmethod
    def _require_printable_name(cls, value: str | None) -> str | None:
        if value is not None and not value.isprintable():
            raise ValueError("must be printable text on one line")
        return value

    @field_validator("bases")
    @classmethod
    def _validate_bases(cls, value: str | None) -> str | None:
        return check_pattern(value) if value is not None else None

    @field_validator("successors_of")
    @classmethod
    def _validate_successors_of(cls, value: str | None) -> str | None:
        return check_base_repo_id(value) if value is not None else None

    @field_validator("adapters")
    @classmethod
    def _validate_adapters(cls, value: tuple[RepoRef, ...]) -> tuple[RepoRef, ...]:
        for adapter in value:
            check_base_repo_id(adapter.repo_id)
        if len(set(value)) < len(value):
            raise ValueError("names an adapter twice")
        return value

    @field_validator("since")
    @classmethod
    def _normalize_since(cls, value: datetime | None) -> datetime | None:
        """A date without a zone is UTC."""
        if value is None:
            return None
        if value.year not in _ALLOWED_YEARS:
            raise ValueError(f"must lie between the years {_ALLOWED_YEARS.start} and {_ALLOWED_YEARS.stop}")
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)

    _no_nul = model_validator(mode="before")(reject_nul)

    @model_validator(mode="before")
    @classmethod
    def _require_one_rule(cls, value: Any) -> Any:
        if isinstance(value, dict) and (value.get("bases") is None) == (value.get("successors_of") is None):
            raise ValueError("give exactly one of 'bases' (a pattern) and 'successors_of' (a base)")
        return value

    @model_validator(mode="after")
    def _require_distinct_outputs(self) -> SubscriptionRequest:
        check_distinct_outputs(self.output.repo_id, self.adapters)
        return self

    @property
    def owner(self) -> str:
        """Whose releases are meant, in lower case, as webhooks are matched by."""
        return get_owner(self.bases or self.successors_of or "")

    @property
    def owner_as_written(self) -> str:
        """The same as the hub lists it."""
        return (self.bases or self.successors_of or "").partition("/")[0]
