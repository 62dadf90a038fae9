"""Subscriptions: output templates, the request and its checks, the jobs' requests, and the responses.

Fields of an output template, filled in per adapter and release:
{owner}         the adapter's owner
{adapter}       the adapter's name; with a subfolder, `name-subfolder`
{target_owner}  the new base's owner
{target}        the new base's name
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from rebase.methods.auto.params import AutoParams
from rebase.methods.params import AnyMethodParams
from rebase.schemas.callbacks import CallbackSpec
from rebase.schemas.conversions import (
    ConversionRequest,
    OutputSpec,
    PrecheckSpec,
    check_precheck_request,
    check_selection_examples,
    reject_nul,
)
from rebase.schemas.evaluation import EvaluationSpec
from rebase.schemas.guards import MAX_JOBS, Guards
from rebase.schemas.model_names import check_base_repo_id, check_pattern, get_owner
from rebase.schemas.repos import CorpusSpec, RepoRef, check_repo_id

if TYPE_CHECKING:
    from rebase.store.records import SubscriptionPage, SubscriptionRecord


DEFAULT_OUTPUT_TEMPLATE = "{owner}/{adapter}--{target}"
TEMPLATE_FIELDS = ("owner", "adapter", "target_owner", "target")
_FIELD = re.compile(r"\{([^{}]*)\}")
_SAMPLE_REPO_ID = "owner/name"


def check_template(template: str) -> str:
    """The template unchanged. Raises ValueError if it has an unknown field or cannot produce a repo id."""
    if len(template) > 200:
        raise ValueError("must be at most 200 characters")
    for field in _FIELD.findall(template):
        if field not in TEMPLATE_FIELDS:
            raise ValueError(f"has no field '{{{field[:40]}}}'; fields are {_format_fields()}")
    if "{" in (rest := _FIELD.sub("", template)) or "}" in rest:
        raise ValueError("has a brace that is not part of a field")
    check_output_repo_id(fill_template(template, _SAMPLE_REPO_ID, _SAMPLE_REPO_ID))
    return template


def check_distinct_outputs(template: str, adapters: Iterable[RepoRef]) -> None:
    """Raises ValueError, naming both, if two adapters of one release would get the same output repo."""
    seen: dict[str, RepoRef] = {}
    for adapter in adapters:
        name = fill_template(template, adapter.output_stem, _SAMPLE_REPO_ID).casefold()
        if name in seen:
            raise ValueError(
                f"gives {seen[name]} and {adapter} the same output repo; use {adapter} and {{owner}} to "
                "distinguish them"
            )
        seen[name] = adapter


def fill_template(template: str, adapter: str, target: str) -> str:
    """The output name for one adapter (its `output_stem`) and one base (its repo id); not checked."""
    owner, _, name = adapter.rpartition("/")
    target_owner, _, target_name = target.rpartition("/")
    values = {"owner": owner, "adapter": name, "target_owner": target_owner, "target": target_name}
    return _FIELD.sub(lambda match: values[match[1]], template)


def check_output_repo_id(name: str) -> str:
    """A repo id that can be published to. Raises ValueError."""
    if name.count("/") != 1:
        raise ValueError("must produce 'owner/name'")
    return check_repo_id(name)


def _format_fields() -> str:
    return ", ".join(f"{{{field}}}" for field in TEMPLATE_FIELDS)


# A subscription: when this owner releases a matching base, convert these adapters with these settings.


class OutputTemplate(OutputSpec):
    """Where converted adapters go and how they are written; `repo_id` is a template."""

    repo_id: str = Field(
        default=DEFAULT_OUTPUT_TEMPLATE,
        description="Fields: {owner} and {adapter} of the adapter, {target_owner} and {target} of the base.",
        examples=[DEFAULT_OUTPUT_TEMPLATE],
    )

    @field_validator("repo_id")
    @classmethod
    def _validate_repo_id(cls, value: str | None) -> str | None:
        return check_template(value) if value is not None else None


_ALLOWED_YEARS = range(2000, 2200)  # arithmetic on dates at the ends of the supported range overflows


def _wrap_string(key: str) -> BeforeValidator:
    """Accept a string as the object's main field: `"auto"` for `{"name": "auto"}`, a template for
    `{"repo_id": …}`."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


class SubscriptionRequest(BaseModel):
    """`POST /subscriptions`. Exactly one of `bases` and `successors_of` says which releases match."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = Field(default=None, min_length=1, max_length=100, description="A display name.")
    bases: str | None = Field(
        default=None,
        max_length=200,
        description="A pattern over one owner's repos, such as `acme/harbor-*`; case-insensitive.",
        examples=["acme/harbor-*"],
    )
    successors_of: str | None = Field(
        default=None,
        max_length=200,
        description="A base. Its successors have the same owner and family name, and a higher version.",
    )
    adapters: tuple[RepoRef, ...] = Field(min_length=1, max_length=MAX_JOBS)
    source: RepoRef | None = Field(
        default=None, description="The base of all adapters; null: the one that each adapter names."
    )
    method: Annotated[AnyMethodParams, _wrap_string("name")] = Field(default_factory=AutoParams)
    output: Annotated[OutputTemplate, _wrap_string("repo_id")] = Field(default_factory=OutputTemplate)
    precheck: PrecheckSpec = Field(default_factory=PrecheckSpec)
    corpus: CorpusSpec | None = None
    evaluate: EvaluationSpec | None = None
    callback: CallbackSpec | None = Field(
        default=None, description="Send a callback to this URL for every conversion."
    )
    guards: Guards = Field(default_factory=Guards)
    dry_run: bool = Field(
        default=False, description="Only pre-checks at first; approving the campaign starts conversions."
    )
    on_update: bool = Field(
        default=False, description="Convert again when the weights of a converted base change."
    )
    since: datetime | None = Field(
        default=None,
        description="Repos created since then count as releases; null: since the subscription was created. "
        "An earlier date includes existing repos.",
    )

    @field_validator("name")
    @classmethod
    def _require_printable_name(cls, value: str | None) -> str | None:
        if value is not None and not value.isprintable():
            raise ValueError("must be one line of printable text")
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
        """A date without a time zone is UTC."""
        if value is None:
            return None
        if value.year not in _ALLOWED_YEARS:
            raise ValueError(f"must be between the years {_ALLOWED_YEARS.start} and {_ALLOWED_YEARS.stop}")
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
        """The owner whose releases match, in lower case, for look-ups by webhooks."""
        return get_owner(self.bases or self.successors_of or "")

    @property
    def owner_as_written(self) -> str:
        """The same, spelt as in the request."""
        return (self.bases or self.successors_of or "").partition("/")[0]


# From a subscription and a release to the requests of its jobs.

Stage = Literal["precheck", "convert"]


def build_conversion_request(
    spec: SubscriptionRequest, adapter: RepoRef, target: RepoRef, stage: Stage, output: str | None
) -> ConversionRequest:
    """The request for one adapter; `output` is the filled-in template. Raises ValueError if source and target
    are the same."""
    output_fields = {**spec.output.model_dump(), "repo_id": output if stage == "convert" else None}
    return ConversionRequest(
        adapter=adapter,
        source=spec.source,
        target=target,
        method=spec.method,
        output=OutputSpec.model_validate(output_fields),
        precheck=spec.precheck,
        corpus=spec.corpus,
        evaluate=spec.evaluate if stage == "convert" else None,
        callback=spec.callback if stage == "convert" else None,
    )


def check_subscription_request(spec: SubscriptionRequest) -> None:
    """Reject now what every job of the subscription would be rejected for. Raises RequestInvalid."""
    example = RepoRef(repo_id="example/base", revision="0" * 40)
    stages: tuple[Stage, ...] = ("precheck", "convert") if spec.dry_run else ("convert",)
    for stage in stages:
        request = build_conversion_request(spec, spec.adapters[0], example, stage, "example/output")
        check_selection_examples(request)
        if stage == "precheck":
            check_precheck_request(request)


# The requests of internal jobs: check a release, poll for releases without a webhook.

SeenBy = Literal["webhook", "poll", "retry"]
MAIN_REF = "refs/heads/main"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReleaseTask(_Model):
    """One release for one subscription. `sha` is the announced commit; the worker reads the Hub anew."""

    subscription_id: str
    repo_id: str
    sha: str
    seen_by: SeenBy


class ReconcileTask(_Model):
    """A poll of an owner's models, for all subscriptions of the job's tenant to that owner."""

    owner: str


class SubscriptionOut(BaseModel):
    """A subscription; `request` is as submitted, with defaults filled in."""

    id: str
    name: str | None
    bases: str | None
    successors_of: str | None
    adapter_count: int
    paused: bool
    since: datetime = Field(description="Repos created earlier do not count as releases.")
    looked_at: datetime = Field(description="A poll has covered all changes on the Hub before this time.")
    created_at: datetime
    request: dict[str, Any]
    links: dict[str, str]

    @classmethod
    def from_record(cls, record: SubscriptionRecord) -> SubscriptionOut:
        """Build from a record."""
        request = record.request
        return cls.model_construct(
            id=record.id,
            name=request.get("name"),
            bases=request.get("bases"),
            successors_of=request.get("successors_of"),
            adapter_count=len(request["adapters"]),
            paused=record.paused,
            since=record.since,
            looked_at=record.looked_at,
            created_at=record.created_at,
            request=request,
            links={
                "self": f"/subscriptions/{record.id}",
                "campaigns": f"/campaigns?subscription={record.id}",
            },
        )


class SubscriptionListOut(BaseModel):
    """One page, newest first. Pass `next_cursor` as `cursor` for the next page; null on the last one."""

    subscriptions: list[SubscriptionOut]
    next_cursor: str | None

    @classmethod
    def from_page(cls, page: SubscriptionPage) -> SubscriptionListOut:
        """Build from a page of records."""
        subscriptions = [SubscriptionOut.from_record(one) for one in page.subscriptions]
        return cls.model_construct(subscriptions=subscriptions, next_cursor=page.next_cursor)
