"""Report schema for the selection of a method by measurement."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat


class _SelectionModel(BaseModel):
    model_config = ConfigDict(frozen=True)


class ScoreInterval(_SelectionModel):
    """A mean over examples with its 95 % interval."""

    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat


class CandidateRow(_SelectionModel):
    """A compared method: its score and its gain over the target alone, on the selection half. `verdict`: of
    its own pre-check; `reason`: why it was not measured, if it has no score."""

    method: dict[str, Any]
    verdict: Literal["compatible", "uncertain", "incompatible"] | None = None
    score: ScoreInterval | None = None
    gain: ScoreInterval | None = None
    reason: str | None = None


class Confirmation(_SelectionModel):
    """The best candidate's scores on the confirmation half, which played no part in its selection."""

    score: ScoreInterval
    target: ScoreInterval
    gain: ScoreInterval


class Selection(_SelectionModel):
    """How a method, or DARE's drop rate, was selected by measurement. Scores: higher is better.

    Candidates with an incompatible pre-check are measured too, but kept only if the request sets
    `on_incompatible="warn"`.

    `choosing`, `confirming`: number of examples in the selection and confirmation halves, split by `seed`;
    `shared`: too few to split, so both are all of them. `best`: the row with the highest score, the first on
    ties. `ending`: `better` if it beats the target alone (`target`) on the selection half and is not worse on
    the other; otherwise, what failed.
    """

    score: str
    seed: int
    choosing: int
    confirming: int
    shared: bool
    target: ScoreInterval
    candidates: list[CandidateRow]
    best: int | None
    ending: Literal["better", "none_fit", "none_better", "not_confirmed"]
    confirmed: Confirmation | None
