"""What a conversion is going to do, settled before anything is read: below it nobody sees a request."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rebase.methods.auto.candidates import list_candidates
from rebase.methods.base import CorpusNeeds, Evidence
from rebase.methods.base_params import MethodParams
from rebase.methods.dare import dare_variants
from rebase.methods.registry import get_method, is_trained
from rebase.schemas.conversions import ConversionRequest, OutputSpec, check_precheck_request
from rebase.schemas.evaluation import EvaluationSpec
from rebase.schemas.repos import CorpusSpec, RepoRef
from rebase.schemas.thresholds import Thresholds

Kind = Literal["convert", "precheck"]
_CORPUS_EVIDENCE = frozenset({Evidence.ACTIVATIONS, Evidence.MAPS})


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """One conversion or pre-check.

    `source`: None takes the base that the adapter names. `precheck_reads_corpus`: asked for or ruled out by
    the request; None leaves it to the method. `corpus_file`: a text of this machine, in place of `corpus`.
    """

    kind: Kind
    adapter: RepoRef
    source: RepoRef | None
    target: RepoRef
    method: MethodParams
    output: OutputSpec
    thresholds: Thresholds
    rejects_incompatible: bool
    precheck_reads_corpus: bool | None
    corpus: CorpusSpec | None
    corpus_file: Path | None
    evaluation: EvaluationSpec | None

    @property
    def has_examples(self) -> bool:
        """Can methods be compared by measurement?"""
        return self.evaluation is not None and bool(self.evaluation.examples)

    def candidates(self, *, has_pool: bool = True) -> tuple[MethodParams, ...]:
        """The methods that are run and compared on the examples, the simplest first: for `auto`, and for a
        method with a DARE sweep. None where the method is settled. `has_pool`: a pool may cover the bases."""
        if not self.has_examples:
            return ()
        if self.method.chooses_method:
            allow_text = self.precheck_reads_corpus is not False
            return list_candidates(self.method, has_pool=has_pool, allow_text=allow_text)
        return (self.method,) if len(dare_variants(self.method)) > 1 else ()

    @property
    def selects_by_evaluation(self) -> bool:
        """Does measuring choose the method? The verdict on the one that rules would choose is not final."""
        return self.method.chooses_method and bool(self.candidates())

    @property
    def needs_corpus(self) -> bool:
        """Do both bases read the corpus? When the method needs it, or the pre-check is asked for it, which
        naming a corpus does. For `auto` this is the pre-check alone; candidates have plans of their own."""
        if self.precheck_reads_corpus is not None:
            return self.precheck_reads_corpus or _method_needs_corpus(self.method)
        return self.corpus is not None or _method_needs_corpus(self.method)

    @property
    def candidates_need_corpus(self) -> bool:
        """Does any method that is compared read it?"""
        return any(map(_method_needs_corpus, self.candidates()))

    @property
    def corpus_needs(self) -> CorpusNeeds:
        """How the bases read it; the usual way where a rule has yet to choose the method."""
        if self.method.chooses_method:
            return CorpusNeeds()
        return get_method(self.method.name).corpus_needs(self.method)

    @property
    def needs_running_models(self) -> bool:
        """Will both bases run as models, so that all of their weights are read?"""
        trains = is_trained(self.method) or self.method.refine is not None
        return trains or self.needs_corpus or self.evaluation is not None

    def for_candidate(self, params: MethodParams) -> ConversionPlan:
        """The plan for one candidate without DARE; the corpus goes along where the candidate reads one."""
        plan = replace(self, method=params.model_copy(update={"dare": None}))
        return plan if plan.needs_corpus else replace(plan, corpus=None, corpus_file=None)


def plan_conversion(
    request: ConversionRequest, kind: Kind = "convert", *, corpus_file: Path | None = None
) -> ConversionPlan:
    """The plan of a request. Raises RequestInvalid for a pre-check that asks for a conversion."""
    if kind == "precheck":
        check_precheck_request(request)
    return ConversionPlan(
        kind=kind,
        adapter=request.adapter,
        source=request.source,
        target=request.target,
        method=request.method,
        output=request.output,
        thresholds=request.precheck.thresholds,
        rejects_incompatible=request.precheck.on_incompatible == "reject",
        precheck_reads_corpus=request.precheck.activations,
        corpus=request.corpus,
        corpus_file=corpus_file,
        evaluation=request.evaluate,
    )


def _method_needs_corpus(params: MethodParams) -> bool:
    return not params.chooses_method and bool(get_method(params.name).needs(params) & _CORPUS_EVIDENCE)
