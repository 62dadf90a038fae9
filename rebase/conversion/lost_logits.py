"""How much of an adapter's effect is lost, measured on the logits of its own source base.

The source runs alone (b), with the parts that are transferred (c), and with the whole adapter (f); the share
that is lost is ‖f − c‖/‖f − b‖. Everything is added to the weights in place, so that one copy of the model is
enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rebase.conversion.extra_parts import ExtraParts, ExtraPartsPlan, split_parts
from rebase.conversion.parameters import compute_change
from rebase.conversion.token_tables import TrainedTable, get_table
from rebase.conversion.verify import can_run_whole
from rebase.errors import UnsupportedModel
from rebase.evidence.inputs import LoadedInputs
from rebase.lora.extra_parts import StoredParameter
from rebase.lora.low_rank import Site
from rebase.lora.token_rows import EmbeddingRole, get_embedding_role, iter_row_deltas
from rebase.models.loading import load_transformers_model
from rebase.models.partial_model import PartialModel
from rebase.models.task_model import choose_runnable_config

_PROBE_TOKENS = 32
_MAX_PROBE_TRAINED = 8


def measure_on_logits(inputs: LoadedInputs, plan: ExtraPartsPlan, device: torch.device) -> float | None:
    """The share in [0, 1]; None if the source is too large to run whole here, or cannot be run."""
    if not can_run_whole(inputs.source_reader):
        return None
    try:
        model = _SourceModel(inputs, device)
    except UnsupportedModel:  # the verdict then rests on the norms; a target that cannot run is refused later
        return None
    carried, lost = split_parts(inputs, plan)
    ids = _build_probe_ids(inputs, (*carried.tables, *lost.tables))
    base = model.compute_logits(ids)
    paired = {pair.source for pair in inputs.pairing.pairs}
    for site in inputs.adapter.sites:
        if site in paired:
            delta = inputs.adapter.delta(site)
            model.add_to_weight(site, delta.B @ delta.A)
    model.add_parts(carried, plan.tokens.row_map, lost_rows=False, loras=_map_loras(plan))
    transferred = model.compute_logits(ids)
    for site in inputs.adapter.sites:
        if site not in paired:
            model.add_to_weight(site, inputs.adapter.exact_update(site))
        elif site in inputs.adapter.dense_sites:
            delta = inputs.adapter.delta(site)
            model.add_to_weight(site, inputs.adapter.exact_update(site) - delta.B @ delta.A)
    model.add_parts(carried, plan.tokens.row_map, lost_rows=True, loras=_map_loras(plan))
    model.add_parts(lost, None, lost_rows=True, loras={})
    whole = model.compute_logits(ids)
    effect = float((whole - base).norm())
    missing = float((whole - transferred).norm())
    if not (math.isfinite(effect) and math.isfinite(missing)) or effect == 0.0:
        return None
    return min(missing / effect, 1.0)


def _map_loras(plan: ExtraPartsPlan) -> dict[str, Tensor]:
    return {part.stored.module: part.row_map for part in plan.vocabulary_loras}


def _build_probe_ids(inputs: LoadedInputs, tables: tuple[TrainedTable, ...]) -> Tensor:
    """(1, 32) token ids: evenly spaced over the vocabulary, then up to eight of those trained singly."""
    rows = inputs.source.embedding_shape[0]
    ids = torch.linspace(0, rows - 1, min(_PROBE_TOKENS, rows)).long()
    trained = sorted({id_ for part in tables for id_ in part.stored.ids or () if id_ < rows})
    if chosen := trained[: min(_MAX_PROBE_TRAINED, ids.numel() - 1)]:
        ids[-len(chosen) :] = torch.tensor(chosen)
    return ids[None]


class _SourceModel:
    """The source base as a running model to which parts of the adapter are added in place, in float32."""

    def __init__(self, inputs: LoadedInputs, device: torch.device) -> None:
        text_config, self._is_outer = choose_runnable_config(inputs.source.config)
        state = dict(PartialModel(is_outer=self._is_outer).iter_weights(inputs.source_reader))
        self._inputs = inputs
        self._device = device
        self._model = load_transformers_model(text_config, state, torch.float32, "/source").to(device).eval()
        # Input and output change apart from each other, and `TrainedTable.roles` says which of them change.
        head = self._model.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)

    def compute_logits(self, ids: Tensor) -> Tensor:
        """(1, n, vocabulary) on the CPU."""
        with torch.inference_mode():
            logits: Tensor = self._model(ids.to(self._device), use_cache=False).logits.float().cpu()
        return logits

    def add_to_weight(self, site: Site, update: Tensor) -> None:
        """Add a dense update (o, i) to a site's weight."""
        architecture = self._inputs.source.architecture
        weight = self._get_parameter(f"{architecture.get_module_name(site)}.weight")
        rows = architecture.get_output_rows(site)
        update = update.to(weight)
        with torch.no_grad():
            view = weight.T if architecture.family.transposed else weight
            if rows is None:
                view += update
            else:
                view[rows] += update

    def add_parts(
        self, parts: ExtraParts, row_map: Tensor | None, *, lost_rows: bool, loras: Mapping[str, Tensor]
    ) -> None:
        """Add token rows, LoRA on token tables and parameters. Where a part has a row map, either the rows
        that are transferred or, with `lost_rows`, the others; whole parameters count as transferred."""
        for trained in parts.tables:
            base = get_table(self._inputs, "source", trained.roles[0])
            for ids, change in iter_row_deltas(self._inputs.adapter, trained.stored, base):
                chosen = _choose_rows(ids, row_map, lost_rows)
                for role in trained.roles:
                    self._add_rows(role, ids[chosen], change[chosen])
        for lora in parts.loras:
            lora_role = get_embedding_role(self._inputs.source.architecture, lora.module)
            if lora_role is None:
                continue
            update = self._inputs.adapter.read_vocabulary_lora(lora)
            ids = torch.arange(min(update.shape[0], self._inputs.source.embedding_shape[0]))
            ids = ids[_choose_rows(ids, loras.get(lora.module), lost_rows)]
            self._add_rows(lora_role, ids, update.B[ids] @ update.A)
        if row_map is None or not lost_rows:
            for stored in parts.parameters:
                self._add_parameter(stored)

    def _add_parameter(self, stored: StoredParameter) -> None:
        change = compute_change(self._inputs, stored)
        if change is None or stored.base_name is None:
            return
        parameter = self._get_parameter(self._inputs.source.get_parameter_name(stored.base_name))
        with torch.no_grad():
            parameter += change.to(parameter)

    def _add_rows(self, role: EmbeddingRole, ids: Tensor, change: Tensor) -> None:
        module = (
            self._model.get_input_embeddings() if role == "input" else self._model.get_output_embeddings()
        )
        with torch.no_grad():
            module.weight[ids.to(self._device)] += change.to(module.weight)

    def _get_parameter(self, name: str) -> Tensor:
        """By the name in the whole model; a nested text model is run alone, under its own root."""
        architecture = self._inputs.source.architecture
        if name.startswith(architecture.root) and not self._is_outer:
            name = f"{architecture.family.root}{name.removeprefix(architecture.root)}"
        parameter: Tensor = self._model.get_parameter(name)
        return parameter.data


def _choose_rows(ids: Tensor, row_map: Tensor | None, lost_rows: bool) -> Tensor:
    if row_map is None:
        return torch.full(ids.shape, lost_rows, dtype=torch.bool)
    has_row = row_map[ids] >= 0
    return ~has_row if lost_rows else has_row
