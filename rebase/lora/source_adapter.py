"""An adapter as the rest of the engine sees it: an update for each site, and what was trained besides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rebase.errors import MalformedAdapter
from rebase.lora.extra_parts import (
    ExpertLora,
    LeftBehind,
    OtherLora,
    StoredParameter,
    VocabularyLora,
)
from rebase.lora.linalg import factorize
from rebase.lora.low_rank import LowRank, Site
from rebase.lora.tensors import TensorReader
from rebase.lora.trained_tables import StoredTable

if TYPE_CHECKING:
    from rebase.models.weights import ModelWeights

# Share of a dense update's energy that its low-rank form keeps: 3 % of the norm is lost, less than the 5 %
# above which a verdict is never `compatible`.
KEPT_ENERGY = 0.999
# The default limit of a dense update's rank. vLLM accepts ranks of up to 512, and a file of rank 256 is
# already a few percent of its base.
DENSE_MAX_RANK = 256
_RANK_TOLERANCE = 1e-5  # singular values below this share of the largest are rounding noise
_TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class AdapterContents:
    """What an adapter has besides its updates of sites.

    `warnings`: messages for users. `left_behind`: trained parts that cannot be transferred in any case.
    `tables`, `vocabulary_loras`, `parameters`, `expert_loras`, `other_loras`: what was trained besides the
    sites; the caller decides whether to transfer it. `expert_ranks`: PEFT's `target_parameters`, each with
    its rank. `task_type`: PEFT's, or None. `is_headless`: trained on the model that `AutoModel` loads.
    `unknown_options`: switched-on config keys that PEFT does not know.
    """

    warnings: tuple[str, ...] = ()
    left_behind: tuple[LeftBehind, ...] = ()
    tables: tuple[StoredTable, ...] = ()
    vocabulary_loras: tuple[VocabularyLora, ...] = ()
    parameters: tuple[StoredParameter, ...] = ()
    expert_loras: tuple[ExpertLora, ...] = ()
    other_loras: tuple[OtherLora, ...] = ()
    expert_ranks: Mapping[str, int] = field(default_factory=dict)
    task_type: str | None = "CAUSAL_LM"
    is_headless: bool = False
    unknown_options: tuple[str, ...] = ()

    @property
    def has_extra_parts(self) -> bool:
        """Did the adapter train anything besides its updates of sites?"""
        loras = (*self.vocabulary_loras, *self.expert_loras, *self.other_loras)
        return bool(self.tables or self.parameters or loras)


class SourceAdapter(ABC):
    """Updates of one adapter on one base. `delta` reads on every call and stores only measurements.

    `rank`: the largest rank of the stored factors. `max_rank`: the most to which a dense update may grow.
    `measurements`: filled as sites are read; sites with a dense update get its lost energy.
    """

    def __init__(
        self,
        sites: Iterable[Site],
        rank: int,
        reader: TensorReader,
        base: ModelWeights,
        contents: AdapterContents,
        max_rank: int,
    ) -> None:
        adapted = frozenset(sites)
        self._reader = reader
        self._base = base
        self._max_rank = max_rank
        self.sites: tuple[Site, ...] = tuple(site for site in base.sites if site in adapted)
        self.rank = rank
        self.warnings = contents.warnings
        self.left_behind = contents.left_behind
        self.tables = contents.tables
        self.vocabulary_loras = contents.vocabulary_loras
        self.parameters = contents.parameters
        self.contents = contents
        self.task_type = contents.task_type
        self.is_headless = contents.is_headless
        self.unknown_options = contents.unknown_options
        self.measurements: dict[Site, dict[str, float]] = {}

    @abstractmethod
    def delta(self, site: Site) -> LowRank:
        """The site's update in float32, scale folded into B. Raises MalformedAdapter on NaN or Inf."""

    @abstractmethod
    def exact_update(self, site: Site) -> Tensor:
        """The site's whole update, dense (o, i) float32; differs from `delta` where that is truncated."""

    @property
    @abstractmethod
    def dense_sites(self) -> tuple[Site, ...]:
        """The sites whose update may have full rank, so that `delta` may lose a part of it."""

    def read_parameter(self, parameter: StoredParameter) -> Tensor:
        """A fully trained parameter in float32. MalformedAdapter on NaN or Inf."""
        return self._read(parameter.tensor_name)

    def round_like(self, parameter: StoredParameter, tensor: Tensor) -> Tensor:
        """A float32 tensor rounded to the dtype in which the adapter stores this parameter."""
        stored = self._reader.infos()[parameter.tensor_name].dtype
        return tensor.to(_TORCH_DTYPES[stored]).float()

    def read_vocabulary_lora(self, lora: VocabularyLora) -> LowRank:
        """The change of a token table, (tokens, width), as factors in float32 with the scale folded in."""
        A, B = self._read(lora.A), self._read(lora.B)
        return LowRank(A.T * lora.scale, B.T) if lora.is_embedding else LowRank(B * lora.scale, A)

    def read_expert_lora(self, lora: ExpertLora | OtherLora) -> LowRank:
        """The factors as PEFT stores them, in float32, with the scale folded into B."""
        return LowRank(self._read(lora.B) * lora.scale, self._read(lora.A))

    def read_table_rows(self, table: StoredTable, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a trained table in the stored dtype. MalformedAdapter on NaN or Inf."""
        rows = self._reader.read_rows(table.tensor_name, start, stop)
        check_finite(rows, table.tensor_name)
        return rows

    def _truncate(self, site: Site, update: Tensor, min_rank: int, measurement: str) -> LowRank:
        """A dense update at its own rank if that is allowed, else at the one that keeps KEPT_ENERGY.

        `min_rank`: the least in that case; `measurement`: the name of the share of ‖ΔW‖²_F that is lost.
        """
        limit = min(max(min_rank, self._max_rank), *update.shape)
        factors = factorize(update, limit)
        numerical_rank = max(1, int((_RANK_TOLERANCE * factors.S[0] < factors.S).sum()))
        kept, lost_energy = min(numerical_rank, limit), 0.0
        if numerical_rank == limit < min(update.shape):
            total = float(update.double().square().sum())
            shares = factors.S.double().square().cumsum(0) / total
            kept = min(limit, max(min_rank, int((shares < KEPT_ENERGY).sum()) + 1))
            lost_energy = max(0.0, 1.0 - float(shares[kept - 1]))
        self.measurements[site] = {measurement: lost_energy}
        return LowRank(factors.U[:, :kept] * factors.S[:kept], factors.V[:, :kept].T.contiguous())

    def _slice_role_rows(self, site: Site, tensor: Tensor) -> Tensor:
        rows = self._base.architecture.get_output_rows(site)
        return tensor if rows is None else tensor[rows]

    def _read(self, name: str) -> Tensor:
        tensor = self._reader.read(name).float()
        check_finite(tensor, name)
        return tensor


def check_finite(tensor: Tensor, name: str) -> None:
    """Raises MalformedAdapter for NaN or Inf."""
    if not bool(torch.isfinite(tensor).all()):
        raise MalformedAdapter(f"The adapter contains NaN or Inf in {name}.")
