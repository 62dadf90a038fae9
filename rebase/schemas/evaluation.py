"""What a request wants to be measured on running models, once its adapter has been moved."""

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

# The whole body of a request has at most 256 KiB; these bounds say so field by field.
_MAX_TEXT_LENGTH = 200_000
_MAX_EXAMPLES = 5_000
Control = Literal["zero", "random", "pad"]
# No field is called so, because errors name fields and tags in one path.
EXAMPLE_TAGS = ("of generation", "of choices", "of text")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GenerationExample(_Model):
    """A prompt and the one right answer behind it, as the model would write it."""

    prompt: str = Field(min_length=1, max_length=_MAX_TEXT_LENGTH, description="What the model is given.")
    answer: str = Field(
        min_length=1,
        max_length=_MAX_TEXT_LENGTH,
        description="What it should write next. Prompt and answer are joined as they stand, so a space "
        "between them belongs to one of the two.",
    )

    @field_validator("answer")
    @classmethod
    def _require_visible_answer(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must hold more than white space: that is trimmed before answers are compared")
        return value


class ChoiceExample(_Model):
    """A prompt and what could stand behind it, of which one choice is right."""

    prompt: str = Field(min_length=1, max_length=_MAX_TEXT_LENGTH, description="What the model is given.")
    choices: tuple[Annotated[str, Field(min_length=1, max_length=_MAX_TEXT_LENGTH)], ...] = Field(
        min_length=2,
        max_length=26,
        description="What could follow, joined to the prompt as it stands; the likeliest counts as chosen.",
    )
    label: int = Field(ge=0, le=25, description="The right choice, counted from 0.")

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
    """A text that the model should find likely."""

    text: str = Field(min_length=2, max_length=_MAX_TEXT_LENGTH, description="Plain text.")


def _get_example_tag(value: Any) -> str:
    """Told apart by their fields."""
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
    """A column of a dataset repo that holds prompts."""

    n: int = Field(default=100, ge=1, le=2000, description="Prompts to read from the beginning of the split.")


class RefusalSpec(_Model):
    """Prompts, and how much of an answer is looked at to tell whether it refuses."""

    prompts: tuple[Annotated[str, Field(min_length=1, max_length=_MAX_TEXT_LENGTH)], ...] = Field(
        default=(), max_length=_MAX_EXAMPLES, description="Prompts, given as they are to the models."
    )
    dataset: RefusalDataset | None = Field(default=None, description="Prompts from a dataset repo instead.")
    tokens: int = Field(
        default=32, ge=4, le=256, description="Tokens of each answer; a refusal shows in its first words."
    )

    @model_validator(mode="after")
    def _require_one_source(self) -> RefusalSpec:
        if bool(self.prompts) == (self.dataset is not None):
            raise ValueError("give either prompts or a dataset")
        return self


class EvaluationSpec(_Model):
    """What is measured, against what, and what happens when the moved adapter makes the target worse."""

    examples: tuple[Example, ...] = Field(
        default=(),
        max_length=_MAX_EXAMPLES,
        description="Examples told apart by their fields: {prompt, answer}, {prompt, choices, label} or "
        "{text}. They must not be what the adapter was trained on.",
    )
    tasks: tuple[TaskName, ...] = Field(
        default=(),
        max_length=20,
        description="Tasks of EleutherAI's lm-evaluation-harness, by name. The worker needs the extra "
        "'evaluation' and the tasks' datasets.",
    )
    limit: int | None = Field(
        default=100, ge=1, le=100_000, description="Documents of each task, from its beginning; null: all."
    )
    num_fewshot: int | None = Field(
        default=None, ge=0, le=64, description="Worked examples before each document; null: as the task says."
    )
    refusals: RefusalSpec | None = Field(
        default=None, description="Prompts to see how often each model refuses."
    )
    oracle: RepoRef | None = Field(
        default=None,
        description="An adapter that was trained on the target for the same skill; with it the share of that "
        "training's gain which the move keeps is reported.",
    )
    controls: tuple[Control, ...] = Field(
        default=("zero", "random", "pad"),
        max_length=3,
        description="What the moved adapter is compared with: zero (the target alone, always there), random "
        "(noise of the same norm and rank at every site), pad (the update copied number by number).",
    )
    score: Literal["accuracy", "likelihood"] | None = Field(
        default=None,
        description="What decides: accuracy (examples with an answer, right or wrong) or likelihood (minus "
        "nats per byte of the right text, no answer is generated). Null: accuracy where any example has an "
        "answer.",
    )
    choices_per_byte: bool = Field(
        default=False, description="Compare choices by log-likelihood per byte, so that long ones can win."
    )
    max_tokens: int = Field(default=64, ge=1, le=1024, description="Longest answer that is generated.")
    stop: tuple[Annotated[str, Field(min_length=1, max_length=100)], ...] = Field(
        default=(), max_length=8, description="An answer ends before the first of these."
    )
    bootstrap: int = Field(default=2000, ge=100, le=20_000, description="Resamples behind every interval.")
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="Of the resamples and the random control.")
    on_worse: Literal["reject", "warn"] = Field(
        default="reject",
        description="When the moved adapter scores below the target alone and the interval of the difference "
        "agrees: publish nothing, or publish with a warning.",
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
