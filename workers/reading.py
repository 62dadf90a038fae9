"""Open the three repos: configs and tensor headers now, tensor data later and one site at a time."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from rebase.errors import FileMissing, RebaseError, TransferError
from rebase.methods.base import Evidence
from rebase.methods.base_params import MethodParams
from rebase.methods.registry import get_method
from rebase.methods.site_pairing import Pairing, pair_sites
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.states import Phase
from transfer.adapter.config import AdapterConfig
from transfer.adapter.read import SourceAdapter, read_adapter
from transfer.precheck.measure import probe_pairs
from transfer.pseudo import PairedEmbeddings
from transfer.vocabulary import SharedTokens, Vocabulary, shared
from transfer.weights import ModelWeights, TensorReader
from workers.hub.port import Hub, PinnedRepo
from workers.resolve import PinnedInputs, choose_source_ref, pin, require_distinct_bases
from workers.tensors.model_reader import ModelReader, open_adapter, open_model
from workers.verify.forward import runs_whole
from workers.verify.structure import empty_model
from workers.wants import needs_model_runtime
from workers.watch import ProgressReporter

T = TypeVar("T")
BASE_WEIGHT_EVIDENCE = frozenset(
    {Evidence.WEIGHTS, Evidence.FACTORS, Evidence.EMBEDDINGS}
)  # what needs base weights
_MAX_CARD_BYTES = 2**20  # long cards have some ten thousand
_LM_HEAD_PATTERN = re.compile(
    r"(lm_head|embed_out)\.(weight|bias)$"
)  # only the forward check reads it, and a few rows


@dataclass(frozen=True, slots=True)
class LoadedInputs:
    """Everything the science works on, still mostly on disk."""

    pinned: PinnedInputs
    source: ModelWeights
    target: ModelWeights
    source_reader: ModelReader
    target_reader: ModelReader
    adapter: SourceAdapter
    pairing: Pairing
    vocabularies: SharedTokens | None
    source_tokenizer: dict[str, Any] | None  # tokenizer.json
    target_tokenizer: dict[str, Any] | None


def resolve_repos(
    request: ConversionRequest, hub: Hub, progress: ProgressReporter
) -> tuple[PinnedInputs, dict[str, Any], TensorReader]:
    """Pin adapter, source and target. The adapter's config is read here, as it may name the source."""
    progress.update(Phase.RESOLVING, 0, 3, "repos")
    adapter = pin(hub, request.adapter, "/adapter")
    config, reader = open_adapter(hub, adapter)
    progress.update(Phase.RESOLVING, 1, 3, "repos")
    ref, warnings = choose_source_ref(request, config)
    source = pin(hub, ref, "/source")
    if config.get("base_model_name_or_path") == source.repo_id:
        warnings = ()  # a folder has another name in the request than in the adapter
    progress.update(Phase.RESOLVING, 2, 3, "repos")
    target = pin(hub, request.target, "/target")
    require_distinct_bases(source, target)
    return PinnedInputs(adapter, source, target, warnings), config, reader


def load_inputs(
    request: ConversionRequest,
    hub: Hub,
    pinned: PinnedInputs,
    adapter_config: dict[str, Any],
    adapter_reader: TensorReader,
    progress: ProgressReporter,
) -> LoadedInputs:
    """Open both bases, check the adapter against its own base, and pair the sites."""
    progress.update(Phase.READING, 0, 3, "repos")
    config = _run_with_pointer("/adapter", lambda: AdapterConfig.parse(adapter_config))
    source_config, source_reader, source_tokenizer = _run_with_pointer(
        "/source", lambda: open_model(hub, pinned.source)
    )
    source = _run_with_pointer("/source", lambda: ModelWeights(source_config, source_reader))
    progress.update(Phase.READING, 1, 3, "repos")
    target_config, target_reader, target_tokenizer = _run_with_pointer(
        "/target", lambda: open_model(hub, pinned.target)
    )
    target = _run_with_pointer("/target", lambda: ModelWeights(target_config, target_reader))
    _run_with_pointer(
        "/target", lambda: empty_model(target_config)
    )  # or verification would fail after all the work
    progress.update(Phase.READING, 2, 3, "repos")
    adapter = _run_with_pointer("/adapter", lambda: read_adapter(config, adapter_reader, source))
    pairing = pair_sites(source, target, adapter.sites, layer_scale=request.method.layer_scale)
    vocabularies = _find_shared_tokens(source_tokenizer, target_tokenizer)
    inputs = LoadedInputs(
        pinned,
        source,
        target,
        source_reader,
        target_reader,
        adapter,
        pairing,
        vocabularies,
        source_tokenizer,
        target_tokenizer,
    )
    _declare_needed_tensors(inputs, request)
    progress.update(Phase.READING, 3, 3, "repos")
    return inputs


def build_paired_embeddings(inputs: LoadedInputs, max_tokens: int) -> PairedEmbeddings | None:
    """Pseudo-activations from at most `most` shared tokens, spread evenly over the vocabulary."""
    tokens = inputs.vocabularies
    if tokens is None or tokens.source_ids.numel() == 0:
        return None
    count = tokens.source_ids.numel()
    positions = torch.linspace(0, count - 1, min(count, max_tokens), dtype=torch.float64).round().long()
    return PairedEmbeddings(
        inputs.source, inputs.target, tokens.source_ids[positions], tokens.target_ids[positions]
    )


def read_license(hub: Hub, repo: PinnedRepo) -> str | None:
    """The licence that a repo's own card names, if it has a card and the card has one."""
    if not 0 < repo.files.get("README.md", 0) <= _MAX_CARD_BYTES:
        return None
    try:
        text = hub.fetch(repo, "README.md").read_text(encoding="utf-8", errors="replace")
    except FileMissing:
        return None
    if not text.startswith("---"):
        return None
    for line in text.split("---", 2)[1].splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "license" and value.strip():
            return value.strip().strip("\"'")[:100]
    return None


def _declare_needed_tensors(inputs: LoadedInputs, request: ConversionRequest) -> None:
    """Tell the readers what will be read: a remote shard of which little is needed then comes in ranges."""
    pairs = inputs.pairing.pairs
    if not _needs_every_site(inputs, request.method):
        pairs = probe_pairs(pairs)
    sides = (
        (inputs.source, inputs.source_reader, [pair.source for pair in pairs]),
        (inputs.target, inputs.target_reader, [pair.target for pair in pairs]),
    )
    for weights, reader, sites in sides:
        site_tensors = {name for site in weights.sites for name in weights.tensors_of(site)}
        reader.needed(name for site in sites for name in weights.tensors_of(site))
        other_tensors = [name for name in reader.infos() if name not in site_tensors]
        reader.needed(
            name for name in other_tensors if inputs.adapter.tables or not _LM_HEAD_PATTERN.search(name)
        )
    if needs_model_runtime(request):
        for reader in (inputs.source_reader, inputs.target_reader):
            reader.needed(reader.infos())
    if runs_whole(inputs.target_reader):
        inputs.target_reader.needed(inputs.target_reader.infos())


def _needs_every_site(inputs: LoadedInputs, params: MethodParams) -> bool:
    """Will the method read base weights at every site? `auto` copies between equal shapes and reads none."""
    if params.chooses_method:
        return any(pair.source_shape != pair.target_shape for pair in inputs.pairing.pairs)
    return bool(get_method(params.name).needs(params) & BASE_WEIGHT_EVIDENCE)


def _find_shared_tokens(source: dict[str, Any] | None, target: dict[str, Any] | None) -> SharedTokens | None:
    """Shared tokens, or None where a repo has no tokenizer.json that can be read."""
    if source is None or target is None:
        return None
    try:
        return shared(Vocabulary.from_tokenizer_json(source), Vocabulary.from_tokenizer_json(target))
    except TransferError:
        return None


def _run_with_pointer(pointer: str, action: Callable[[], T]) -> T:
    """Run `work`; an error that does not say yet which field it is about says `pointer`."""
    try:
        return action()
    except (RebaseError, TransferError) as exc:
        exc.pointer = exc.pointer or pointer
        raise
