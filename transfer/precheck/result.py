"""What a pre-check says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from rebase.methods.base_params import MethodParams
from rebase.methods.findings import Finding
from rebase.methods.site_pairing import Pairing

Verdict = Literal["compatible", "uncertain", "incompatible"]


@dataclass(frozen=True, slots=True)
class PrecheckResult:
    """`params`: of the method that was judged; for `auto`, of the method that it chose. `prepared`: what that
    method prepared; `pairing`: the sites that it can carry, and those that are left out."""

    verdict: Verdict
    findings: tuple[Finding, ...]
    measurements: dict[str, float]
    params: MethodParams
    prepared: Any
    pairing: Pairing

    @property
    def method(self) -> str:
        """Name of the method that the verdict is about."""
        return self.params.name


def verdict_of(findings: Iterable[Finding]) -> Verdict:
    """The gravest finding decides."""
    weights = {finding.weight for finding in findings}
    if "blocking" in weights:
        return "incompatible"
    return "uncertain" if "doubt" in weights else "compatible"
