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
from workers.reading import LoadedInputs
from workers.report import FindingRow, Precheck, keep_finite


@dataclass(frozen=True, slots=True)
class PrecheckOutcome:
    """The verdict, the parameters of the method that it is about (`auto` is resolved here), what that method
    prepared, and the sites that it can carry."""

    precheck: Precheck
    params: MethodParams
    method_state: Any
    pairing: Pairing


def run_precheck(
    inputs: LoadedInputs,
    evidence: EvidenceSource,
    requested: MethodParams,
    thresholds: Thresholds,
    pair_sites_for: Callable[[MethodParams], Pairing],
) -> PrecheckOutcome:
    """The pre-check on this deployment's evidence. `paired`: the sites of the method that `auto` chooses."""
    activations = evidence.activations
    result = precheck(
        inputs.source,
        inputs.target,
        inputs.adapter,
        inputs.pairing,
        inputs.vocabularies,
        requested,
        probes=lambda pair: evidence.at(pair, PROBE_NEEDS),
        device=evidence.device,
        offer=evidence.offer,
        text=activations.measured(thresholds.similar) if activations is not None else None,
        thresholds=thresholds,
        paired=pair_sites_for,
    )
    reasons = [build_finding_row(finding) for finding in result.findings]
    document = Precheck(
        verdict=result.verdict, reasons=reasons, measurements=keep_finite(result.measurements)
    )
    return PrecheckOutcome(document, result.params, result.prepared, result.pairing)


def build_finding_row(finding: Finding) -> FindingRow:
    """A finding as the report writes it."""
    return FindingRow(code=finding.code, message=finding.message, weight=finding.weight)
