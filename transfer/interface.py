"""What a transfer method is, and the small values that pass between it and the pipeline.

Orientation throughout is PEFT's: a linear layer is y = W x with W ∈ R^{o×i}; an update is ΔW = B A with
A ∈ R^{r×i}, B ∈ R^{o×r}, the LoRA scale already in B. A *site* is one linear role in one layer, after fused
modules were split (`q_proj`, never `qkv_proj`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from torch import Tensor

from transfer.catalogue import MethodParams

Side = Literal["source", "target"]
Port = Literal["in", "out"]


class Role(StrEnum):
    """The seven linear roles of a decoder layer; each architecture's table says where they live."""

    Q = "q_proj"
    K = "k_proj"
    V = "v_proj"
    O = "o_proj"  # noqa: E741  (the field's own letter)
    GATE = "gate_proj"
    UP = "up_proj"
    DOWN = "down_proj"


class Evidence(StrEnum):
    """What a method asks the pipeline to gather. Nothing that is not declared is computed."""

    WEIGHTS = "weights"
    FACTORS = "factors"
    EMBEDDINGS = "embeddings"  # shared-vocabulary pseudo-activations
    ACTIVATIONS = "activations"
    ANCHORS = "anchors"
    VALIDATION = "validation"


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """One linear role in one layer of one model."""

    layer: int
    role: Role

    def __str__(self) -> str:
        return f"{self.layer}.{self.role.value}"


@dataclass(frozen=True, slots=True)
class LowRank:
    """ΔW = B A, scale included. B: (o, r), A: (r, i); float32 unless a caller says otherwise."""

    B: Tensor
    A: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i) of the dense update."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def rank(self) -> int:
        """Columns of B; the numerical rank may be lower."""
        return self.B.shape[1]

    def scaled(self, factor: float) -> LowRank:
        """The same update times `factor`."""
        return LowRank(self.B * factor, self.A)


@dataclass(frozen=True, slots=True)
class Factors:
    """Rank-k truncated SVD of one base weight: W ≈ U diag(S) Vᵀ. U: (o, k), S: (k,), V: (i, k), float32.

    `energy` is the share of ‖W‖²_F that the k directions hold, in [0, 1].
    """

    U: Tensor
    S: Tensor
    V: Tensor
    energy: float


@dataclass(frozen=True, slots=True)
class SitePair:
    """A target site, the source site that it takes its update from, and the factor for shared layers."""

    source: Site
    target: Site
    source_shape: tuple[int, int]
    target_shape: tuple[int, int]
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Pair:
    """Both bases as far as a method's `prepare` may look: configs and paired sites. No tensors."""

    source_config: Mapping[str, Any]
    target_config: Mapping[str, Any]
    sites: tuple[SitePair, ...]


class SiteEvidence(Protocol):
    """Evidence for one site pair, read lazily; only what the method declared in `needs` may be asked for."""

    def weight(self, side: Side) -> Tensor:
        """The base weight of this site, (o, i) float32. WEIGHTS."""

    def factors(self, side: Side, rank: int) -> Factors:
        """Truncated SVD of the base weight, rank clipped to min(o, i). FACTORS."""

    def paired(self, side: Side, port: Port) -> Tensor:
        """Paired rows of what the site reads or writes, (n, width) float32. EMBEDDINGS."""

    def kept(self, what: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Small float32 tensors, none empty, that depend on the two bases and this site pair alone: computed
        once per pair of bases and shared tokens, and found again by every further adapter. EMBEDDINGS.

        `what` starts with a word for people, and names every setting and algorithm version they depend on.
        """


@dataclass(frozen=True, slots=True)
class Carried:
    """A site's new update with named measurements (finite floats) and flags (short snake_case warnings)."""

    delta: LowRank
    measurements: dict[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


P_contra = TypeVar("P_contra", bound=MethodParams, contravariant=True)


class Method(Protocol, Generic[P_contra]):
    """One transfer method. Both functions are pure; same inputs, same bytes."""

    name: ClassVar[str]

    def needs(self, params: P_contra) -> frozenset[Evidence]:
        """The evidence that `carry` will ask for with these parameters."""

    def prepare(self, params: P_contra, pair: Pair) -> Any:
        """Once per job: small state for `carry`. Raises IncompatiblePair before any expensive work."""

    def carry(
        self, params: P_contra, state: Any, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> Carried:
        """One site. `delta`: the source update times `site.scale`, source shape; the result: target shape."""
