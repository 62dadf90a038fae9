"""Pseudo-activations from shared tokens: paired evidence that does not require running the bases.

The embedding of a shared token stands in for the residual stream. A layer's norms and weights then give what
each site would read and write if that row were the layer's input:

    q, k, v in      attention norm of E          o in       the values' outputs, repeated per query group
    gate, up in     MLP norm of E                down in    act(gate) · up, or act(up)
    q…up out        W·(in) + bias                o, down out  E itself: they write the residual stream

Only one layer's rows per side are kept at a time, so memory does not grow with depth.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from rebase.lora.low_rank import Role, Side, Site
from rebase.methods.base import Port
from rebase.models.weights import ModelWeights

# The inputs of `down` cost two products with the layer's widest weights, n·d·ff each. At 4096 rows that would
# be most of a conversion's cost; 1024 rows still give three tokens per direction at k = 320.
INNER_ROWS = 1024

# Part of `PairedEmbeddings.digest`: raise it whenever the same tokens may give different rows.
ROWS_VERSION = 1

_ATTENTION = frozenset({Role.Q, Role.K, Role.V})
_MLP = frozenset({Role.GATE, Role.UP})


@dataclass(slots=True)
class _BaseRows:
    """A base's own rows: its embeddings, and the rows last computed for one layer."""

    base: ModelWeights
    ids: Tensor
    embeddings: Tensor | None = None
    layer: int = -1
    rows: dict[str, Tensor] = field(default_factory=dict)


class SharedTokenRows:
    """Rows of both bases for the same tokens: row j of either side belongs to shared token j.

    Nothing is read until rows are requested. `inner_rows` limits the rows for the inputs of `down`, which are
    spread evenly over the tokens. Raises ValueError if the two id tensors differ in shape.
    """

    def __init__(
        self,
        source: ModelWeights,
        target: ModelWeights,
        source_ids: Tensor,
        target_ids: Tensor,
        inner_rows: int = INNER_ROWS,
    ) -> None:
        if source_ids.shape != target_ids.shape:
            raise ValueError("source_ids and target_ids must have equal shapes")
        self._sides = {"source": _BaseRows(source, source_ids), "target": _BaseRows(target, target_ids)}
        count = source_ids.numel()
        indices = torch.linspace(0, max(count - 1, 0), min(count, inner_rows), dtype=torch.float64)
        self._inner = indices.round().long()

    @property
    def token_count(self) -> int:
        """How many shared tokens are paired."""
        return self._sides["source"].ids.numel()

    @cached_property
    def digest(self) -> str:
        """Identifies these rows among all of the same two bases: hex SHA-256 of everything they depend on."""
        sha = hashlib.sha256(f"rows v{ROWS_VERSION}, {self._inner.numel()} inner, tokens ".encode())
        for side in self._sides.values():
            sha.update(side.ids.to("cpu", torch.int64).contiguous().numpy().astype("<i8").tobytes())
        return sha.hexdigest()

    def rows(self, side: Side, site: Site, port: Port) -> Tensor:
        """What the site reads or writes, (n, width) float32; n is the same on both sides."""
        base_rows = self._sides[side]
        if base_rows.layer != site.layer:
            base_rows.layer, base_rows.rows = site.layer, {}
        return self._get_inputs(base_rows, site) if port == "in" else self._get_outputs(base_rows, site)

    def _get_inputs(self, base_rows: _BaseRows, site: Site) -> Tensor:
        if site.role in _ATTENTION:
            return self._get_cached(base_rows, "attention")
        if site.role in _MLP:
            return self._get_cached(base_rows, "mlp")
        return self._get_cached(base_rows, site.role.value)

    def _get_outputs(self, base_rows: _BaseRows, site: Site) -> Tensor:
        if site.role in _ATTENTION | _MLP:
            return _apply_site(base_rows.base, site, self._get_inputs(base_rows, site))
        return self._load_embeddings(base_rows)

    def _get_cached(self, base_rows: _BaseRows, name: str) -> Tensor:
        """The layer's rows of that name, computed once."""
        if name not in base_rows.rows:
            base_rows.rows[name] = self._compute(base_rows, name)
        return base_rows.rows[name]

    def _compute(self, base_rows: _BaseRows, name: str) -> Tensor:
        match name:
            case "attention":
                return base_rows.base.load_norm(base_rows.layer, "attention")(
                    self._load_embeddings(base_rows)
                )
            case "mlp":
                return base_rows.base.load_norm(base_rows.layer, "mlp")(self._load_embeddings(base_rows))
            case Role.O.value:
                values = _apply_site(
                    base_rows.base, Site(base_rows.layer, Role.V), self._get_cached(base_rows, "attention")
                )
                return _repeat_value_heads(base_rows.base, values)
            case _:
                return self._compute_inner_activations(base_rows)

    def _compute_inner_activations(self, base_rows: _BaseRows) -> Tensor:
        x = self._get_cached(base_rows, "mlp")[self._inner]
        architecture = base_rows.base.architecture
        up = _apply_site(base_rows.base, Site(base_rows.layer, Role.UP), x)
        if not architecture.is_gated:
            return architecture.activate(up)
        return architecture.activate(_apply_site(base_rows.base, Site(base_rows.layer, Role.GATE), x)) * up

    def _load_embeddings(self, base_rows: _BaseRows) -> Tensor:
        if base_rows.embeddings is None:
            base_rows.embeddings = base_rows.base.read_embedding_rows(base_rows.ids)
        return base_rows.embeddings


def _apply_site(base: ModelWeights, site: Site, x: Tensor) -> Tensor:
    """The site's own linear layer: x Wᵀ + bias."""
    return torch.nn.functional.linear(x, base.weight(site), base.bias(site))


def _repeat_value_heads(base: ModelWeights, values: Tensor) -> Tensor:
    """(n, n_kv·head_dim) → (n, n_heads·head_dim): each value head serves the query heads of its group."""
    architecture = base.architecture
    heads = values.view(-1, architecture.n_kv_heads, architecture.head_dim)
    return heads.repeat_interleave(architecture.n_heads // architecture.n_kv_heads, dim=1).flatten(1)
