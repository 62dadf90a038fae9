"""The pre-check, fed with this deployment's evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rebase.methods.base_params import MethodParams
from rebase.methods.findings import Finding
from rebase.methods.site_pairing import Pairing
from rebase.schemas.thresholds import Thresholds
from transfer.precheck.judge import PROBE_NEEDS, precheck
from workers.evidence import EvidenceSource
from workers.reading import Opened
from workers.report import Precheck, ReasonRow, finite


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdict, the parameters of the method that it is about (`auto` is resolved here), what that method
    prepared, and the sites that it can carry."""

    precheck: Precheck
    params: MethodParams
    prepared: Any
    pairing: Pairing


def judge(
    opened: Opened,
    evidence: EvidenceSource,
    wanted: MethodParams,
    thresholds: Thresholds,
    paired: Callable[[MethodParams], Pairing],
) -> Judged:
    """The pre-check on this deployment's evidence. `paired`: the sites of the method that `auto` chooses."""
    activations = evidence.activations
    found = precheck(
        opened.source,
        opened.target,
        opened.adapter,
        opened.pairing,
        opened.vocabularies,
        wanted,
        probes=lambda pair: evidence.at(pair, PROBE_NEEDS),
        device=evidence.device,
        offer=evidence.offer,
        text=activations.measured(thresholds.similar) if activations is not None else None,
        thresholds=thresholds,
        paired=paired,
    )
    reasons = [row_of(finding) for finding in found.findings]
    document = Precheck(verdict=found.verdict, reasons=reasons, measurements=finite(found.measurements))
    return Judged(document, found.params, found.prepared, found.pairing)


def row_of(finding: Finding) -> ReasonRow:
    """A finding as the report writes it."""
    return ReasonRow(code=finding.code, message=finding.message, weight=finding.weight)
