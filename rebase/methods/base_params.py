"""Parameters that several methods share: sampling, distillation, DARE, paired text. Torch-free."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field


class SamplingParams(BaseModel):
    """How the source and its adapter write text, and which of it counts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: int = Field(
        default=20_000, ge=256, le=5_000_000, description="Tokens that the source and its adapter write."
    )
    prompts: tuple[Annotated[str, Field(min_length=1, max_length=4000)], ...] | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description="Unlabelled inputs of the task, each continued in turn; null lets it write from nothing.",
    )
    temperature: float = Field(
        default=1.0, ge=0.0, le=2.0, description="Of the sampling; 0 always takes the likeliest token."
    )
    top_p: float = Field(
        default=0.95, gt=0.0, le=1.0, description="Share of the probability that tokens are drawn from."
    )
    length: int = Field(
        default=128,
        ge=16,
        le=4096,
        description="Most tokens written per sample; a sample is one training sequence.",
    )
    filter: Literal["speaks", "none"] = Field(
        default="none",
        description=(
            "`speaks` learns from the tokens that the adapter makes likelier [2510.04682]; `none` from all, "
            "which did as well or better on every real task measured."
        ),
    )
    keep: float = Field(
        default=0.7,
        gt=0.0,
        le=1.0,
        description="Share of the written tokens that `speaks` keeps: those that the adapter lifts most.",
    )
    held_out: float = Field(
        default=0.1, gt=0.0, le=0.5, description="Share of the samples that is measured on, never fitted to."
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Decides what is written and its order.")


class DistillSettings(SamplingParams):
    """What text is written and how long it is trained on: shared by `distill` and `refine`."""

    shift: float = Field(
        default=0.0,
        ge=0.0,
        le=1e6,
        description=(
            "Weight of the shift objective beside the cross-entropy: where tokens of both tokenizers end "
            "at one place, the adapter's effect on next-token probabilities is to be the same; 0 leaves "
            "it out."
        ),
    )
    steps: int = Field(default=200, ge=1, le=100_000, description="Most steps of training.")
    batch: int = Field(default=8, ge=1, le=1024, description="Samples in a step.")
    learning_rate: float = Field(default=4e-4, gt=0.0, le=0.1, description="AdamW's, after the warm-up.")
    warmup: int = Field(default=4, ge=0, le=10_000, description="Steps over which the learning rate rises.")
    clip: float = Field(default=1.0, ge=0.0, le=1e6, description="Longest gradient; 0 leaves it as it is.")
    evaluate_every: int = Field(
        default=20, ge=1, le=10_000, description="Steps between measurements on held-out samples."
    )
    patience: int = Field(
        default=3,
        ge=0,
        le=1000,
        description="Measurements in a row without a better one that end the training; 0 does all steps.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="What products are computed in; parameters stay float32."
    )


class RefineParams(DistillSettings):
    """Train a carried update on a little text that the source and its adapter write."""

    tokens: int = Field(
        default=8_000, ge=256, le=5_000_000, description="Tokens that the source and its adapter write."
    )
    steps: int = Field(default=30, ge=1, le=100_000, description="Most steps of training.")
    learning_rate: float = Field(default=2e-4, gt=0.0, le=0.1, description="AdamW's, after the warm-up.")


class DareParams(BaseModel):
    """Drop entries of the carried update and rescale the others, after any method [000, DARE]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    p: Annotated[float, Field(gt=0.0, lt=1.0)] | Literal["sweep"] = Field(
        default=0.9,
        description=(
            "Share of entries dropped. `sweep` tries 0, 0.8, 0.9, 0.95 and 0.99 and keeps the best by "
            "measurement; it needs `evaluate`."
        ),
    )
    mode: Literal["random", "magnitude"] = Field(
        default="random",
        description="`random` is unbiased; `magnitude` (literal) makes the update several times as long.",
    )
    rank: int | None = Field(
        default=None, ge=1, le=4096, description="Rank of the result; null keeps the update's own."
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Decides which entries are dropped.")


class MethodParams(BaseModel):
    """What every method's parameters share. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    chooses_method: ClassVar[bool] = False
    """These parameters stand for a rule that picks one of the other methods."""

    uses_pool: ClassVar[bool] = False
    """An anchor pool can be used with these parameters."""

    name: str
    layer_scale: bool = Field(
        default=True,
        description="Divide an update by the number of target layers that share its source layer.",
    )
    fold: bool = Field(
        default=False,
        description=(
            "Where the source is deeper, add up the updates of all its layers that belong to one target "
            "layer and cut the sum to the adapter's rank; otherwise each target layer takes one layer's."
        ),
    )
    refine: RefineParams | None = Field(
        default=None,
        description="Train the carried update on a little text that the source writes; off by default.",
    )
    dare: DareParams | None = Field(default=None, description="Thin the carried update out; off by default.")

    @property
    def pool_id(self) -> str | None:
        """The anchor pool that the parameters name."""
        return None

    @property
    def listed_candidates(self) -> tuple[MethodParams, ...] | None:
        """The methods that the parameters list to be compared; None where they list none."""
        return None


class PairedTextParams(MethodParams):
    """What methods share that run both bases over one text."""

    positions: int = Field(
        default=16384,
        ge=256,
        le=2**24,
        description="Paired token positions of the corpus that are read; fewer when the text ends.",
    )
    writes: Literal["own", "stream"] = Field(
        default="own",
        description=(
            "Where to look at what o and down write: their own outputs, or the whole stream behind the layer."
        ),
    )


class DenseParams(MethodParams):
    """What the methods that mix whole base weights share."""

    rank: int = Field(
        default=64, ge=1, le=4096, description="Rank kept of the dense result; what is lost is reported."
    )
