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
from workers.hub.port import HubPort, PinnedRepo
from workers.resolve import Pinned, check_different, pin, source_ref
from workers.tensors.model_reader import ModelReader, open_adapter, open_model
from workers.verify.forward import runs_whole
from workers.verify.structure import empty_model
from workers.wants import runs_bases
from workers.watch import Watch

T = TypeVar("T")
OF_BASES = frozenset({Evidence.WEIGHTS, Evidence.FACTORS, Evidence.EMBEDDINGS})  # what needs base weights
_MAX_CARD_BYTES = 2**20  # long cards have some ten thousand
_HEAD = re.compile(r"(lm_head|embed_out)\.(weight|bias)$")  # only the forward check reads it, and a few rows


@dataclass(frozen=True, slots=True)
class Opened:
    """Everything the science works on, still mostly on disk."""

    pinned: Pinned
    source: ModelWeights
    target: ModelWeights
    source_reader: ModelReader
    target_reader: ModelReader
    adapter: SourceAdapter
    pairing: Pairing
    vocabularies: SharedTokens | None
    source_tokenizer: dict[str, Any] | None  # tokenizer.json
    target_tokenizer: dict[str, Any] | None


def resolve(
    request: ConversionRequest, hub: HubPort, watch: Watch
) -> tuple[Pinned, dict[str, Any], TensorReader]:
    """Pin adapter, source and target. The adapter's config is read here, as it may name the source."""
    watch.step(Phase.RESOLVING, 0, 3, "repos")
    adapter = pin(hub, request.adapter, "/adapter")
    config, reader = open_adapter(hub, adapter)
    watch.step(Phase.RESOLVING, 1, 3, "repos")
    ref, warnings = source_ref(request, config)
    source = pin(hub, ref, "/source")
    if config.get("base_model_name_or_path") == source.repo_id:
        warnings = ()  # a folder has another name in the request than in the adapter
    watch.step(Phase.RESOLVING, 2, 3, "repos")
    target = pin(hub, request.target, "/target")
    check_different(source, target)
    return Pinned(adapter, source, target, warnings), config, reader


def read(
    request: ConversionRequest,
    hub: HubPort,
    pinned: Pinned,
    adapter_config: dict[str, Any],
    adapter_reader: TensorReader,
    watch: Watch,
) -> Opened:
    """Open both bases, check the adapter against its own base, and pair the sites."""
    watch.step(Phase.READING, 0, 3, "repos")
    config = _about("/adapter", lambda: AdapterConfig.parse(adapter_config))
    source_config, source_reader, source_tokenizer = _about("/source", lambda: open_model(hub, pinned.source))
    source = _about("/source", lambda: ModelWeights(source_config, source_reader))
    watch.step(Phase.READING, 1, 3, "repos")
    target_config, target_reader, target_tokenizer = _about("/target", lambda: open_model(hub, pinned.target))
    target = _about("/target", lambda: ModelWeights(target_config, target_reader))
    _about("/target", lambda: empty_model(target_config))  # or verification would fail after all the work
    watch.step(Phase.READING, 2, 3, "repos")
    adapter = _about("/adapter", lambda: read_adapter(config, adapter_reader, source))
    pairing = pair_sites(source, target, adapter.sites, layer_scale=request.method.layer_scale)
    vocabularies = _shared(source_tokenizer, target_tokenizer)
    opened = Opened(
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
    _announce(opened, request)
    watch.step(Phase.READING, 3, 3, "repos")
    return opened


def paired_embeddings(opened: Opened, most: int) -> PairedEmbeddings | None:
    """Pseudo-activations from at most `most` shared tokens, spread evenly over the vocabulary."""
    tokens = opened.vocabularies
    if tokens is None or tokens.source_ids.numel() == 0:
        return None
    count = tokens.source_ids.numel()
    pick = torch.linspace(0, count - 1, min(count, most), dtype=torch.float64).round().long()
    return PairedEmbeddings(opened.source, opened.target, tokens.source_ids[pick], tokens.target_ids[pick])


def licence_of(hub: HubPort, repo: PinnedRepo) -> str | None:
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


def _announce(opened: Opened, request: ConversionRequest) -> None:
    """Tell the readers what will be read: a remote shard of which little is needed then comes in ranges."""
    pairs = opened.pairing.pairs
    if not _reads_every_site(opened, request.method):
        pairs = probe_pairs(pairs)
    sides = (
        (opened.source, opened.source_reader, [pair.source for pair in pairs]),
        (opened.target, opened.target_reader, [pair.target for pair in pairs]),
    )
    for weights, reader, sites in sides:
        of_sites = {name for site in weights.sites for name in weights.tensors_of(site)}
        reader.needed(name for site in sites for name in weights.tensors_of(site))
        others = [name for name in reader.infos() if name not in of_sites]
        reader.needed(name for name in others if opened.adapter.tables or not _HEAD.search(name))
    if runs_bases(request):
        for reader in (opened.source_reader, opened.target_reader):
            reader.needed(reader.infos())
    if runs_whole(opened.target_reader):
        opened.target_reader.needed(opened.target_reader.infos())


def _reads_every_site(opened: Opened, wanted: MethodParams) -> bool:
    """Will the method read base weights at every site? `auto` copies between equal shapes and reads none."""
    if wanted.chooses_method:
        return any(pair.source_shape != pair.target_shape for pair in opened.pairing.pairs)
    return bool(get_method(wanted.name).needs(wanted) & OF_BASES)


def _shared(source: dict[str, Any] | None, target: dict[str, Any] | None) -> SharedTokens | None:
    """Shared tokens, or None where a repo has no tokenizer.json that can be read."""
    if source is None or target is None:
        return None
    try:
        return shared(Vocabulary.from_tokenizer_json(source), Vocabulary.from_tokenizer_json(target))
    except TransferError:
        return None


def _about(pointer: str, work: Callable[[], T]) -> T:
    """Run `work`; an error that does not say yet which field it is about says `pointer`."""
    try:
        return work()
    except (RebaseError, TransferError) as exc:
        exc.pointer = exc.pointer or pointer
        raise
