"""Evaluation settings: what to measure on running models after the transfer."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from rebase.schemas.repos import CorpusSpec, RepoRef

# A request body has at most 256 KiB; this limit gives an error for the field instead.
_MAX_TEXT_LENGTH = 200_000
_MAX_EXAMPLES = 5_000
Control = Literal["zero", "random", "pad"]
# No field has these names: error locations mix field names and union tags in one path.
EXAMPLE_TAGS = ("of generation", "of choices", "of text")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GenerationExample(_Model):
    """A prompt and its one correct answer, as the model would write it."""

    prompt: str = Field(min_length=1, max_length=_MAX_TEXT_LENGTH, description="The input to the model.")
    answer: str = Field(
        min_length=1,
        max_length=_MAX_TEXT_LENGTH,
        description="The expected output. Prompt and answer are concatenated unchanged, so a space between "
        "them must be part of one of the two.",
    )

    @field_validator("answer")
    @classmethod
    def _require_visible_answer(cls, value: str) -> str:
        if not value.strip():
            raise ValueError(
                "must contain more than white space, which is trimmed before answers are compared"
            )
        return value


class ChoiceExample(_Model):
    """A prompt with possible continuations, one of which is correct."""

    prompt: str = Field(min_length=1, max_length=_MAX_TEXT_LENGTH, description="The input to the model.")
    choices: tuple[Annotated[str, Field(min_length=1, max_length=_MAX_TEXT_LENGTH)], ...] = Field(
        min_length=2,
        max_length=26,
        description="Continuations, appended to the prompt unchanged; the likeliest is the prediction.",
    )
    label: int = Field(ge=0, le=25, description="Index of the correct choice, from 0.")

    @field_validator("choices")
    @classmethod
    def _require_distinct_choices(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("must differ from each other")
        return value

    @field_validator("label")
    @classmethod
    def _require_label_in_range(cls, value: int, info: ValidationInfo) -> int:
        choices = info.data.get("choices")
        if choices is not None and value >= len(choices):
            raise ValueError(f"must be below the number of choices, {len(choices)}")
        return value


class TextExample(_Model):
    """A text to which the model should assign high likelihood."""

    text: str = Field(min_length=2, max_length=_MAX_TEXT_LENGTH, description="Plain text.")


def _get_example_tag(value: Any) -> str:
    """Distinguish example types by their fields."""
    has_field = value.__contains__ if isinstance(value, dict) else partial(hasattr, value)
    if has_field("text"):
        return EXAMPLE_TAGS[2]
    return EXAMPLE_TAGS[1] if has_field("choices") or has_field("label") else EXAMPLE_TAGS[0]


Example = Annotated[
    Annotated[GenerationExample, Tag(EXAMPLE_TAGS[0])]
    | Annotated[ChoiceExample, Tag(EXAMPLE_TAGS[1])]
    | Annotated[TextExample, Tag(EXAMPLE_TAGS[2])],
    Discriminator(_get_example_tag),
]
TaskName = Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9][\w.+-]*$")]


class RefusalDataset(CorpusSpec):
    """A dataset column that contains prompts."""

    n: int = Field(default=100, ge=1, le=2000, description="Prompts to read, from the start of the split.")


class RefusalSpec(_Model):
    """Prompts, and how many tokens of an answer are read to detect a refusal."""

    prompts: tuple[Annotated[str, Field(min_length=1, max_length=_MAX_TEXT_LENGTH)], ...] = Field(
        default=(), max_length=_MAX_EXAMPLES, description="Prompts, passed to the models unchanged."
    )
    dataset: RefusalDataset | None = Field(default=None, description="Prompts from a dataset repo instead.")
    tokens: int = Field(
        default=32, ge=4, le=256, description="Tokens per answer; a refusal shows in its first words."
    )

    @model_validator(mode="after")
    def _require_one_source(self) -> RefusalSpec:
        if bool(self.prompts) == (self.dataset is not None):
            raise ValueError("give either prompts or a dataset")
        return self


class EvaluationSpec(_Model):
    """What to measure, what to compare with, and what happens if the adapter makes the target worse."""

    examples: tuple[Example, ...] = Field(
        default=(),
        max_length=_MAX_EXAMPLES,
        description="Examples, distinguished by their fields: {prompt, answer}, {prompt, choices, label} or "
        "{text}. Do not use the adapter's training data.",
    )
    tasks: tuple[TaskName, ...] = Field(
        default=(),
        max_length=20,
        description="Tasks of EleutherAI's lm-evaluation-harness, by name. The worker needs the extra "
        "'evaluation' and the tasks' datasets.",
    )
    limit: int | None = Field(
        default=100, ge=1, le=100_000, description="Documents per task, from the start; null: all."
    )
    num_fewshot: int | None = Field(
        default=None, ge=0, le=64, description="Few-shot examples per document; null: the task's default."
    )
    refusals: RefusalSpec | None = Field(
        default=None, description="Prompts to measure how often each model refuses."
    )
    oracle: RepoRef | None = Field(
        default=None,
        description="An adapter trained on the target for the same skill. With it, the report says how "
        "much of that training's gain the transfer retains.",
    )
    controls: tuple[Control, ...] = Field(
        default=("zero", "random", "pad"),
        max_length=3,
        description="Baselines for the transferred adapter: zero (the target alone, always included), random "
        "(noise of the same norm and rank at every site), pad (the update copied entry by entry).",
    )
    score: Literal["accuracy", "likelihood"] | None = Field(
        default=None,
        description="The score that decides: accuracy (examples with a correct answer) or likelihood "
        "(negative nats per byte of the correct text; nothing is generated). Null: accuracy if any example "
        "has an answer.",
    )
    choices_per_byte: bool = Field(
        default=False, description="Compare choices by log-likelihood per byte, not favouring short ones."
    )
    max_tokens: int = Field(default=64, ge=1, le=1024, description="Maximum length of a generated answer.")
    stop: tuple[Annotated[str, Field(min_length=1, max_length=100)], ...] = Field(
        default=(), max_length=8, description="An answer ends before the first of these strings."
    )
    bootstrap: int = Field(default=2000, ge=100, le=20_000, description="Bootstrap resamples per interval.")
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="Seed of resampling and random control.")
    on_worse: Literal["reject", "warn"] = Field(
        default="reject",
        description="If the transferred adapter scores below the target alone and the confidence interval of "
        "the difference excludes zero: publish nothing, or publish with a warning.",
    )

    @field_validator("controls")
    @classmethod
    def _add_zero_control(cls, value: tuple[Control, ...]) -> tuple[Control, ...]:
        all_controls: tuple[Control, ...] = ("zero", "random", "pad")
        return tuple(name for name in all_controls if name == "zero" or name in value)

    @field_validator("tasks")
    @classmethod
    def _require_unique_tasks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("must name each task once")
        return value

    @field_validator("score")
    @classmethod
    def _require_answers_for_accuracy(cls, value: str | None, info: ValidationInfo) -> str | None:
        examples = info.data.get("examples", ())
        if value == "accuracy" and examples and all(isinstance(example, TextExample) for example in examples):
            raise ValueError("accuracy needs examples with an answer; these are texts")
        return value

    @model_validator(mode="after")
    def _require_any_measurement(self) -> EvaluationSpec:
        if not self.examples and not self.tasks and self.refusals is None:
            raise ValueError("give at least one of examples, tasks and refusals")
        return self
