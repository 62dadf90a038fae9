"""Opens the three repos: configs and tensor headers now; tensor data is read later, one site at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from rebase.conversion.plan import ConversionPlan
from rebase.conversion.verify import can_run_whole
from rebase.errors import RebaseError, TransferError
from rebase.evidence.inputs import LoadedInputs, PinnedInputs
from rebase.hub.base import Hub
from rebase.lora.config import AdapterConfig
from rebase.lora.reader import read_adapter
from rebase.lora.source_adapter import DENSE_MAX_RANK, SourceAdapter
from rebase.lora.tensors import TensorReader
from rebase.methods.base import Evidence
from rebase.methods.base_params import MethodParams
from rebase.methods.registry import get_method
from rebase.methods.site_pairing import pair_sites
from rebase.models.empty_model import build_empty_model
from rebase.models.expanded_adapter import read_expanded_adapter
from rebase.models.model_reader import open_model
from rebase.models.vocabulary import SharedTokens, Vocabulary, find_shared_tokens
from rebase.models.weights import ModelWeights
from rebase.precheck.measurements import select_probe_pairs
from rebase.report.progress import ProgressReporter
from rebase.schemas.states import Phase

T = TypeVar("T")
BASE_WEIGHT_EVIDENCE = frozenset(
    {Evidence.WEIGHTS, Evidence.FACTORS, Evidence.EMBEDDINGS}
)  # evidence that needs base weights
_LM_HEAD_PATTERN = re.compile(
    r"(lm_head|embed_out)\.(weight|bias)$"
)  # only the forward check reads it, a few rows at most


def load_inputs(
    plan: ConversionPlan,
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
        "/target", lambda: build_empty_model(target_config)
    )  # fail now instead of in the verification at the end
    progress.update(Phase.READING, 2, 3, "repos")
    adapter = _run_with_pointer(
        "/adapter",
        lambda: open_source_adapter(
            config, adapter_config, adapter_reader, source, plan.output.max_rank or DENSE_MAX_RANK
        ),
    )
    pairing = pair_sites(source, target, adapter.sites, layer_scale=plan.method.layer_scale)
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
    _declare_needed_tensors(inputs, plan)
    progress.update(Phase.READING, 3, 3, "repos")
    return inputs


def open_source_adapter(
    config: AdapterConfig, raw: Mapping[str, Any], reader: TensorReader, base: ModelWeights, max_rank: int
) -> SourceAdapter:
    """The adapter as updates of its base, whatever PEFT type it has. `raw`: the whole adapter_config.json."""
    if config.peft_type == "LORA":
        return read_adapter(config, reader, base, max_rank=max_rank)
    return read_expanded_adapter(config, raw, reader, base, max_rank=max_rank)


def _declare_needed_tensors(inputs: LoadedInputs, plan: ConversionPlan) -> None:
    """Tell the readers which tensors are needed, so that they can fetch ranges instead of whole shards."""
    pairs = inputs.pairing.pairs
    if not _needs_every_site(inputs, plan.method):
        pairs = select_probe_pairs(pairs)
    sides = (
        (inputs.source, inputs.source_reader, [pair.source for pair in pairs]),
        (inputs.target, inputs.target_reader, [pair.target for pair in pairs]),
    )
    for weights, reader, sites in sides:
        site_tensors = {name for site in weights.sites for name in weights.list_tensor_names(site)}
        reader.declare_needed(name for site in sites for name in weights.list_tensor_names(site))
        other_tensors = [name for name in reader.infos() if name not in site_tensors]
        reader.declare_needed(
            name
            for name in other_tensors
            if inputs.adapter.tables or inputs.adapter.vocabulary_loras or not _LM_HEAD_PATTERN.search(name)
        )
    if plan.needs_running_models:
        for reader in (inputs.source_reader, inputs.target_reader):
            reader.declare_needed(reader.infos())
    if can_run_whole(inputs.target_reader):
        inputs.target_reader.declare_needed(inputs.target_reader.infos())


def _needs_every_site(inputs: LoadedInputs, params: MethodParams) -> bool:
    """Will the method read base weights at every site? `auto` copies between equal shapes and reads none."""
    if params.chooses_method:
        return any(pair.source_shape != pair.target_shape for pair in inputs.pairing.pairs)
    return bool(get_method(params.name).needs(params) & BASE_WEIGHT_EVIDENCE)


def _find_shared_tokens(source: dict[str, Any] | None, target: dict[str, Any] | None) -> SharedTokens | None:
    """Shared tokens, or None if a repo has no readable tokenizer.json."""
    if source is None or target is None:
        return None
    try:
        return find_shared_tokens(
            Vocabulary.from_tokenizer_json(source), Vocabulary.from_tokenizer_json(target)
        )
    except TransferError:
        return None


def _run_with_pointer(pointer: str, action: Callable[[], T]) -> T:
    """Run `action`; errors without a pointer get this one."""
    try:
        return action()
    except (RebaseError, TransferError) as exc:
        exc.pointer = exc.pointer or pointer
        raise
