"""How a method was chosen by measurement, as the report writes it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Scored(_Part):
    """A mean over examples with its 95 % interval."""

    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat


class CandidateRow(_Part):
    """A method that was compared, on the choosing half: its score and its gain over the target alone. Without
    a score `reason` says why it was not measured. `verdict`: of its own pre-check."""

    method: dict[str, Any]
    verdict: Literal["compatible", "uncertain", "incompatible"] | None = None
    score: Scored | None = None
    gain: Scored | None = None
    reason: str | None = None


class Confirmed(_Part):
    """The best candidate on the other half, which had no part in its choice."""

    score: Scored
    target: Scored
    gain: Scored


class Selection(_Part):
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
    target: Scored
    candidates: list[CandidateRow]
    best: int | None
    ending: Literal["better", "none_fit", "none_better", "not_confirmed"]
    confirmed: Confirmed | None
