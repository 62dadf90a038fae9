"""The pre-check, fed with this deployment's evidence."""

from __future__ import annotations

from transfer.catalogue import MethodParams
from transfer.precheck import PROBE_NEEDS, precheck
from workers.evidence import EvidenceSource
from workers.reading import Opened
from workers.report import Precheck, ReasonRow, finite


def judge(opened: Opened, evidence: EvidenceSource, wanted: MethodParams) -> tuple[MethodParams, Precheck]:
    """The verdict, and the parameters of the method that it is about (`auto` is resolved here)."""
    found = precheck(
        opened.source,
        opened.target,
        opened.adapter,
        opened.pairing,
        opened.vocabularies,
        wanted,
        probes=lambda pair: evidence.at(pair, PROBE_NEEDS),
        device=evidence.device,
    )
    reasons = [ReasonRow(code=r.code, message=r.message, weight=r.weight) for r in found.reasons]
    document = Precheck(verdict=found.verdict, reasons=reasons, measurements=finite(found.measurements))
    return found.params, document
