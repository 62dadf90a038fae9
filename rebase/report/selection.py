"""How a method was chosen by measurement, as the report writes it."""

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
    """A method that was compared, on the choosing half: its score and its gain over the target alone. Without
    a score `reason` says why it was not measured. `verdict`: of its own pre-check."""

    method: dict[str, Any]
    verdict: Literal["compatible", "uncertain", "incompatible"] | None = None
    score: ScoreInterval | None = None
    gain: ScoreInterval | None = None
    reason: str | None = None


class Confirmation(_SelectionModel):
    """The best candidate on the other half, which had no part in its choice."""

    score: ScoreInterval
    target: ScoreInterval
    gain: ScoreInterval


class Selection(_SelectionModel):
    """How a method, or DARE's share, was chosen by measurement. Scores: higher is better.

    Candidates that their pre-check found incompatible are measured too, but kept only where the request says
    `on_incompatible="warn"`.

    `choosing`, `confirming`: examples in either half, split by `seed`; `shared`: too few, so both are all of
    them. `best`: the row of those that scored highest, the first of equals. `ending`: `better` than
    the target alone (`target`, on the choosing half) on the one half and not worse on the other, or what
    failed.
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
