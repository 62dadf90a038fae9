"""What a request will want from the bases, known before anything is read."""

from __future__ import annotations

from rebase.methods.auto.candidates import list_candidates
from rebase.methods.base import Evidence
from rebase.methods.base_params import MethodParams
from rebase.methods.dare import dare_variants
from rebase.methods.registry import get_method, is_trained
from rebase.schemas.conversions import ConversionRequest

_CORPUS_EVIDENCE = frozenset({Evidence.ACTIVATIONS, Evidence.MAPS})


def get_candidate_methods(request: ConversionRequest, *, has_pool: bool = True) -> tuple[MethodParams, ...]:
    """The methods that are run and compared on the request's examples, the simplest first: for `auto`, and
    for a method with a DARE sweep. None where one was settled beforehand. `pool`: one may cover the bases."""
    params = request.method
    if request.evaluate is None or not request.evaluate.examples:
        return ()
    if params.chooses_method:
        return list_candidates(
            params, has_pool=has_pool, allow_text=request.precheck.activations is not False
        )
    return (params,) if len(dare_variants(params)) > 1 else ()


def selects_by_evaluation(request: ConversionRequest) -> bool:
    """Does measuring choose the method? The verdict on the one that rules would choose then ends nothing."""
    return request.method.chooses_method and bool(get_candidate_methods(request))


def needs_corpus(request: ConversionRequest) -> bool:
    """Are both bases to read the corpus? When the method needs it, or the pre-check is asked for it, as
    naming a corpus does. Of `auto` this is the pre-check alone; each of its candidates is asked by itself."""
    if request.precheck.activations is not None:
        return request.precheck.activations or _method_needs_corpus(request.method)
    return request.corpus is not None or _method_needs_corpus(request.method)


def candidates_need_corpus(request: ConversionRequest) -> bool:
    """Does any method that is compared want them to?"""
    return any(map(_method_needs_corpus, get_candidate_methods(request)))


def _method_needs_corpus(params: MethodParams) -> bool:
    return not params.chooses_method and bool(get_method(params.name).needs(params) & _CORPUS_EVIDENCE)


def needs_model_runtime(request: ConversionRequest) -> bool:
    """Will both bases run as models, so that all of their weights are read?"""
    trains = is_trained(request.method) or request.method.refine is not None
    return trains or needs_corpus(request) or request.evaluate is not None
