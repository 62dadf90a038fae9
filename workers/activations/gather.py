"""Which text both bases are to read for a request, and whether they are to read one at all."""

from __future__ import annotations

from rebase.conversion.plan import ConversionPlan
from rebase.corpus.bundled import load_semantic_primes
from rebase.corpus.load import load_corpus
from rebase.errors import IncompatiblePair, RequestInvalid
from rebase.evidence.inputs import LoadedInputs
from rebase.report.progress import ProgressReporter
from rebase.runtime import Runtime
from workers.activations.collector import Collector
from workers.activations.evidence import Activations
from workers.activations.text import WINDOW, pair_text
from workers.bases import Bases, Stored
from workers.tensors.model_reader import ends_of

FEWEST_POSITIONS = 256  # every eighth passage of these is held out


def gather(
    plan: ConversionPlan,
    opened: LoadedInputs,
    bases: Bases,
    tools: Runtime,
    watch: ProgressReporter,
) -> Activations | None:
    """Both bases over the request's text, or None when nothing wants them. No model is loaded yet."""
    if not plan.needs_corpus:
        if plan.candidates_need_corpus:
            return None  # each of them gathers its own
        if plan.corpus_file is not None:
            raise RequestInvalid(
                f"A corpus is given, but {plan.method.name} reads no text.",
                hint="Ask for precheck.activations=true, or leave --corpus out.",
                pointer="/corpus",
            )
        if plan.corpus is not None:
            raise RequestInvalid(
                "A corpus is named, but precheck.activations is false and the method reads no text.",
                hint="Leave 'corpus' or precheck.activations out.",
                pointer="/corpus",
            )
        return None
    corpus = load_corpus(plan.corpus_file, plan.corpus, tools.hub)
    documents = corpus.documents
    needs = plan.corpus_needs
    if needs.primes_first:
        documents = (*load_semantic_primes().documents, *documents)
    window = needs.window or WINDOW
    text = pair_text(bases.words("source"), bases.words("target"), documents, needs.positions, window)
    if text.positions < FEWEST_POSITIONS:
        raise IncompatiblePair(
            f"The two tokenizers end a token at the same place only {text.positions} times in the corpus "
            f"'{corpus.name}'; {FEWEST_POSITIONS} are needed.",
            hint="Give a longer text, or use a method that looks at weights alone.",
            pointer="/corpus",
        )
    if not any(passage.held_out for passage in text.passages):
        raise IncompatiblePair(
            f"The corpus '{corpus.name}' fills one passage, so no text is held out to measure with.",
            hint="Give a longer text, or use a method that looks at weights alone.",
            pointer="/corpus",
        )
    collector = Collector(
        bases=bases,
        text=text,
        budget=tools.activation_bytes,
        scratch=tools.scratch_dir,
        step=lambda done, total: None,
        keep_rows=needs.rows,
    )
    found = Activations(
        source=opened.pinned.source,
        target=opened.pinned.target,
        corpus=corpus,
        text=text,
        collector=collector,
        cache=tools.cache,
        watch=watch,
        writes=needs.writes,
    )
    collector.step = found.step
    return found


def stored_bases(opened: LoadedInputs, tools: Runtime) -> Bases:
    """The request's bases, none loaded."""
    ends = [ends_of(tools.hub, repo) for repo in (opened.pinned.source, opened.pinned.target)]
    return Bases(
        Stored(opened.source, opened.source_reader, opened.source_tokenizer, ends[0]),
        Stored(opened.target, opened.target_reader, opened.target_tokenizer, ends[1]),
        tools.device,
        tools.model_bytes,
    )
