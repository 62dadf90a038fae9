"""Prepares the text and the collector for activations, if a conversion needs any."""

from __future__ import annotations

from rebase.conversion.plan import ConversionPlan
from rebase.corpus.bundled import load_semantic_primes
from rebase.corpus.load import load_corpus
from rebase.errors import IncompatiblePair, RequestInvalid
from rebase.evidence.activations import Activations
from rebase.evidence.collector import ActivationCollector
from rebase.evidence.inputs import LoadedInputs
from rebase.evidence.paired_text import WINDOW, pair_text
from rebase.models.base_pair import BaseCheckpoint, BasePair
from rebase.models.model_reader import read_eos_ids
from rebase.report.progress import ProgressReporter
from rebase.runtime import Runtime

MIN_POSITIONS = 256  # of which every eighth passage is held out


def prepare_activations(
    plan: ConversionPlan,
    inputs: LoadedInputs,
    models: BasePair,
    runtime: Runtime,
    progress: ProgressReporter,
) -> Activations | None:
    """Activations of both bases on the request's text, or None if not needed. No model is loaded yet.

    Raises RequestInvalid for a corpus that nothing reads, IncompatiblePair if the text is too short.
    """
    if not plan.needs_corpus:
        if plan.candidates_need_corpus:
            return None  # each candidate prepares its own
        if plan.corpus_file is not None:
            raise RequestInvalid(
                f"A corpus is given, but {plan.method.name} uses no text.",
                hint="Set precheck.activations=true, or leave out --corpus.",
                pointer="/corpus",
            )
        if plan.corpus is not None:
            raise RequestInvalid(
                "A corpus is given, but precheck.activations is false and the method uses no text.",
                hint="Leave out 'corpus' or precheck.activations.",
                pointer="/corpus",
            )
        return None
    corpus = load_corpus(plan.corpus_file, plan.corpus, runtime.hub)
    documents = corpus.documents
    needs = plan.corpus_needs
    if needs.primes_first:
        documents = (*load_semantic_primes().documents, *documents)
    window = needs.window or WINDOW
    text = pair_text(
        models.get_tokenizer("source"), models.get_tokenizer("target"), documents, needs.positions, window
    )
    if text.num_positions < MIN_POSITIONS:
        raise IncompatiblePair(
            f"The two tokenizers share only {text.num_positions} token boundaries in the corpus "
            f"'{corpus.name}'; {MIN_POSITIONS} are needed.",
            hint="Use a longer text, or a method that only needs weights.",
            pointer="/corpus",
        )
    if not any(passage.held_out for passage in text.passages):
        raise IncompatiblePair(
            f"The corpus '{corpus.name}' fills only one passage, so no text is left to hold out for "
            "measurement.",
            hint="Use a longer text, or a method that only needs weights.",
            pointer="/corpus",
        )
    collector = ActivationCollector(
        models=models,
        text=text,
        budget=runtime.activation_bytes,
        scratch_dir=runtime.scratch_dir,
        report_progress=lambda done, total: None,
        keep_rows=needs.rows,
    )
    activations = Activations(
        source=inputs.pinned.source,
        target=inputs.pinned.target,
        corpus=corpus,
        text=text,
        collector=collector,
        cache=runtime.cache,
        progress=progress,
        writes=needs.writes,
    )
    collector.report_progress = activations.report_progress
    return activations


def make_base_pair(inputs: LoadedInputs, runtime: Runtime) -> BasePair:
    """The request's base models, not loaded yet."""
    eos_ids = [read_eos_ids(runtime.hub, repo) for repo in (inputs.pinned.source, inputs.pinned.target)]
    return BasePair(
        BaseCheckpoint(inputs.source, inputs.source_reader, inputs.source_tokenizer, eos_ids[0]),
        BaseCheckpoint(inputs.target, inputs.target_reader, inputs.target_tokenizer, eos_ids[1]),
        runtime.device,
        runtime.model_bytes,
    )
