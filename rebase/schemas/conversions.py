"""The conversion request, with the checks that go beyond single fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from rebase.errors import RequestInvalid
from rebase.methods.auto.params import AutoParams
from rebase.methods.base_params import MethodParams
from rebase.methods.params import AnyMethodParams
from rebase.schemas.callbacks import CallbackSpec
from rebase.schemas.evaluation import EvaluationSpec
from rebase.schemas.repos import CorpusSpec, RepoId, RepoRef, check_repo_id
from rebase.schemas.thresholds import Thresholds


def reject_nul(value: Any) -> Any:
    """The body unchanged. Raises ValueError if any of its strings contains U+0000.

    PostgreSQL stores JSON with that character but then fails to query it: the job could be neither claimed
    nor cancelled, and its tenant could not be deleted. Iterative, because a body may be deeply nested.
    """
    pending = [("", value)]
    while pending:
        path, item = pending.pop()
        if isinstance(item, str):
            if "\0" in item:
                raise ValueError(
                    f"contains the character U+0000 at '{path[:200]}', which is not allowed in any text"
                )
        elif isinstance(item, dict):
            pending += [(f"{path}/{key}", inner) for key, inner in item.items()]
        elif isinstance(item, list | tuple):
            pending += [(f"{path}/{index}", inner) for index, inner in enumerate(item)]
    return value


# The conversion request: one schema for HTTP, the CLI and the job record.


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OutputSpec(_Model):
    """Where the converted adapter goes and how it is written."""

    repo_id: RepoId | None = None
    private: bool = True
    create_pr: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    max_rank: int | None = Field(default=None, ge=1, le=4096)
    token_rows: bool = Field(
        default=True,
        description=(
            "Transfer retrained token rows where possible. PEFT loads them; vLLM and llama.cpp need a plain "
            "LoRA: set this to false."
        ),
    )

    @field_validator("repo_id")
    @classmethod
    def _validate_repo_id(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if "/" not in value:
            raise ValueError("must have an owner: 'owner/name'")
        return check_repo_id(value)


class PrecheckSpec(_Model):
    """How compatibility is predicted, and what happens if the pair is incompatible."""

    on_incompatible: Literal["reject", "warn"] = "reject"
    activations: bool | None = Field(
        default=None,
        description=(
            "Run both bases on the corpus and compare their activations. Null: only for methods that need "
            "activations anyway."
        ),
    )
    thresholds: Thresholds = Field(default_factory=Thresholds)


def _wrap_method_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class ConversionRequest(_Model):
    """`POST /convert` and `POST /precheck`; also what `rebase transfer` builds."""

    adapter: RepoRef
    source: RepoRef | None = Field(
        default=None, description="Defaults to the adapter's base_model_name_or_path."
    )
    target: RepoRef
    method: Annotated[AnyMethodParams, BeforeValidator(_wrap_method_name)] = Field(default_factory=AutoParams)
    output: OutputSpec = Field(default_factory=OutputSpec)
    precheck: PrecheckSpec = Field(default_factory=PrecheckSpec)
    corpus: CorpusSpec | None = Field(
        default=None, description="A dataset that both bases read; null: the bundled text."
    )
    evaluate: EvaluationSpec | None = Field(
        default=None,
        description="Evaluate the transferred adapter on running models before publishing; null: do not.",
    )
    callback: CallbackSpec | None = Field(
        default=None, description="Send a signed message when the job ends; see docs/callbacks.md."
    )

    _no_nul = model_validator(mode="before")(reject_nul)

    @model_validator(mode="after")
    def _require_distinct_bases(self) -> ConversionRequest:
        if self.source is not None and self.source == self.target:
            raise ValueError(
                "source and target are the same base model and revision; there is nothing to convert"
            )
        return self


def check_selection_examples(request: ConversionRequest) -> None:
    """Reject, rather than ignore, a selection by evaluation without examples. Raises RequestInvalid."""
    method = request.method
    candidates = method.listed_candidates
    methods: dict[str, MethodParams] = {"/method": method}
    methods |= {f"/method/candidates/{index}": params for index, params in enumerate(candidates or ())}
    has_examples = request.evaluate is not None and bool(request.evaluate.examples)
    if candidates is not None and not has_examples:
        raise RequestInvalid(
            "Candidates are compared on 'evaluate.examples', but there are none.",
            hint="Provide evaluate.examples, or leave out 'candidates' to let rules choose the method.",
            pointer="/method/candidates",
        )
    for pointer, params in methods.items():
        if params.dare is None or params.dare.p != "sweep":
            continue
        if not has_examples:
            raise RequestInvalid(
                "A sweep keeps the share that scores best on 'evaluate.examples', but there are none.",
                hint="Provide evaluate.examples, or set one share as a number.",
                pointer=f"{pointer}/dare/p",
            )
        if method.refine is not None or params.refine is not None:
            raise RequestInvalid(
                "A sweep and 'refine' cannot be combined: every share would need its own training.",
                hint="Find the share first, then refine with that number.",
                pointer=f"{pointer}/dare/p",
            )


def check_precheck_request(request: ConversionRequest) -> None:
    """A pre-check transfers nothing: reject, rather than ignore, options that need a transferred adapter.
    Raises RequestInvalid."""
    if request.evaluate is not None:
        raise RequestInvalid(
            "A pre-check does not convert anything, so there is nothing to evaluate.",
            hint="Leave out 'evaluate', or request a conversion.",
            pointer="/evaluate",
        )
