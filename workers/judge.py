"""The pre-check, fed with this deployment's evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transfer.catalogue import MethodParams, Thresholds
from transfer.interface import SitePair
from transfer.precheck import PROBE_NEEDS, precheck, probe_pairs
from workers.evidence import EvidenceSource
from workers.reading import Opened
from workers.report import Precheck, ReasonRow, finite


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdict, the parameters of the method that it is about (`auto` is resolved here), what that method
    prepared, and the site pairs that it can carry."""

    precheck: Precheck
    params: MethodParams
    prepared: Any
    pairs: tuple[SitePair, ...]


def judge(opened: Opened, evidence: EvidenceSource, wanted: MethodParams, thresholds: Thresholds) -> Judged:
    """The pre-check on this deployment's evidence."""
    activations = evidence.activations
    if activations is not None:
        activations.plan(probe_pairs(opened.pairing.pairs))
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
    )
    reasons = [ReasonRow(code=r.code, message=r.message, weight=r.weight) for r in found.reasons]
    document = Precheck(verdict=found.verdict, reasons=reasons, measurements=finite(found.measurements))
    return Judged(document, found.params, found.prepared, found.pairs)
