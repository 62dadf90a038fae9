"""What a request will want from the bases, known before anything is read."""

from __future__ import annotations

from core.requests import ConversionRequest
from transfer.catalogue import DistillParams
from transfer.interface import Evidence
from transfer.registry import METHODS

_OF_TEXT = frozenset({Evidence.ACTIVATIONS, Evidence.HEADS})


def reads_text(request: ConversionRequest) -> bool:
    """Are both bases to read the corpus? When the method needs it, or the pre-check is asked for it, as
    naming a corpus does."""
    if request.precheck.activations is not None:
        return request.precheck.activations or _method_reads(request)
    return request.corpus is not None or _method_reads(request)


def _method_reads(request: ConversionRequest) -> bool:
    method = METHODS.get(request.method.name)
    return method is not None and bool(method.needs(request.method) & _OF_TEXT)


def runs_bases(request: ConversionRequest) -> bool:
    """Will both bases run as models, so that all of their weights are read?"""
    trains = isinstance(request.method, DistillParams) or request.method.refine is not None
    return trains or reads_text(request) or request.evaluate is not None
