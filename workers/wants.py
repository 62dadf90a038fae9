"""What a request will want from the bases, known before anything is read."""

from __future__ import annotations

from core.requests import ConversionRequest
from transfer.interface import Evidence
from transfer.registry import METHODS

_OF_TEXT = frozenset({Evidence.ACTIVATIONS, Evidence.HEADS})


def reads_text(request: ConversionRequest) -> bool:
    """Are both bases to read the corpus? When the method needs it, or the pre-check is asked for it."""
    if request.precheck.activations is not None:
        return request.precheck.activations or _method_reads(request)
    return _method_reads(request)


def _method_reads(request: ConversionRequest) -> bool:
    method = METHODS.get(request.method.name)
    return method is not None and bool(method.needs(request.method) & _OF_TEXT)
