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
class _OneSide:
    """One base's rows: its embeddings, and the rows of the layer computed last."""

    base: ModelWeights
    ids: Tensor
    embeddings: Tensor | None = None
    layer: int = -1
    rows: dict[str, Tensor] = field(default_factory=dict)


class PairedEmbeddings:
    """Rows of both bases for the same tokens: row j on either side belongs to shared token j.

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
            raise ValueError("source_ids and target_ids must pair up one to one")
        self._sides = {"source": _OneSide(source, source_ids), "target": _OneSide(target, target_ids)}
        count = source_ids.numel()
        spread = torch.linspace(0, max(count - 1, 0), min(count, inner_rows), dtype=torch.float64)
        self._inner = spread.round().long()

    @property
    def tokens(self) -> int:
        """Number of paired shared tokens."""
        return self._sides["source"].ids.numel()

    @cached_property
    def digest(self) -> str:
        """Identifies these rows among all of the same two bases: hex SHA-256 of everything they depend on."""
        sha = hashlib.sha256(f"rows v{ROWS_VERSION}, {self._inner.numel()} inner, tokens ".encode())
        for side in self._sides.values():
            sha.update(side.ids.to("cpu", torch.int64).contiguous().numpy().astype("<i8").tobytes())
        return sha.hexdigest()

    def rows(self, side: Side, site: Site, port: Port) -> Tensor:
        """The site's inputs or outputs, (n, width) float32; n is the same on both sides."""
        own = self._sides[side]
        if own.layer != site.layer:
            own.layer, own.rows = site.layer, {}
        return self._read(own, site) if port == "in" else self._written(own, site)

    def _read(self, own: _OneSide, site: Site) -> Tensor:
        if site.role in _ATTENTION:
            return self._kept(own, "attention")
        if site.role in _MLP:
            return self._kept(own, "mlp")
        return self._kept(own, site.role.value)

    def _written(self, own: _OneSide, site: Site) -> Tensor:
        if site.role in _ATTENTION | _MLP:
            return _through(own.base, site, self._read(own, site))
        return self._embeddings(own)

    def _kept(self, own: _OneSide, name: str) -> Tensor:
        """The layer's rows with this name, computed once."""
        if name not in own.rows:
            own.rows[name] = self._compute(own, name)
        return own.rows[name]

    def _compute(self, own: _OneSide, name: str) -> Tensor:
        match name:
            case "attention":
                return own.base.norm(own.layer, "attention")(self._embeddings(own))
            case "mlp":
                return own.base.norm(own.layer, "mlp")(self._embeddings(own))
            case Role.O.value:
                values = _through(own.base, Site(own.layer, Role.V), self._kept(own, "attention"))
                return _per_query_head(own.base, values)
            case _:
                return self._inner_activations(own)

    def _inner_activations(self, own: _OneSide) -> Tensor:
        x = self._kept(own, "mlp")[self._inner]
        architecture = own.base.architecture
        up = _through(own.base, Site(own.layer, Role.UP), x)
        if not architecture.gated:
            return architecture.activate(up)
        return architecture.activate(_through(own.base, Site(own.layer, Role.GATE), x)) * up

    def _embeddings(self, own: _OneSide) -> Tensor:
        if own.embeddings is None:
            own.embeddings = own.base.embedding_rows(own.ids)
        return own.embeddings


def _through(base: ModelWeights, site: Site, x: Tensor) -> Tensor:
    """Apply the site's linear layer: x Wᵀ + bias."""
    return torch.nn.functional.linear(x, base.weight(site), base.bias(site))


def _per_query_head(base: ModelWeights, values: Tensor) -> Tensor:
    """(n, n_kv·head_dim) → (n, n_heads·head_dim): each value head serves the query heads of its group."""
    architecture = base.architecture
    heads = values.view(-1, architecture.n_kv, architecture.head_dim)
    return heads.repeat_interleave(architecture.n_heads // architecture.n_kv, dim=1).flatten(1)
