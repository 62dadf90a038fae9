"""What a transfer method is, and the small values that pass between it and the pipeline.

Orientation throughout is PEFT's: a linear layer is y = W x with W ∈ R^{o×i}; an update is ΔW = B A with
A ∈ R^{r×i}, B ∈ R^{o×r}, the LoRA scale already in B. A *site* is one linear role in one layer, after fused
modules were split (`q_proj`, never `qkv_proj`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar

from torch import Tensor

from rebase.lora.low_rank import Factors, LowRank, Side, Site
from rebase.methods.base_params import MethodParams
from transfer.linalg import frobenius

if TYPE_CHECKING:
    from rebase.methods.activation_maps import Moments, PairedRows


Space = Literal["delta", "factors"]
Port = Literal["in", "out"]
PORTS: tuple[Port, Port] = ("in", "out")


class Evidence(StrEnum):
    """What a method asks the pipeline to gather. Nothing that is not declared is computed."""

    WEIGHTS = "weights"
    FACTORS = "factors"
    EMBEDDINGS = "embeddings"  # shared-vocabulary pseudo-activations
    ACTIVATIONS = "activations"
    MAPS = "maps"  # maps trained through both bases
    TRAINED = "trained"  # an update of the target, trained as a whole
    ANCHORS = "anchors"
    VALIDATION = "validation"


@dataclass(frozen=True, slots=True)
class SiteMaps:
    """Trained maps of one site pair: x_s ≈ M_in x_t with M_in (i_s, i_t), y_t ≈ M_out y_s with M_out (o_t,
    o_s).

    `reads` (i_s, p), `writes` (o_s, p): orthonormal bases of the source's directions in which they were
    trained; elsewhere they are as they began. p is 0 where nothing was trained at this pair.
    """

    M_in: Tensor
    M_out: Tensor
    input_basis: Tensor
    output_basis: Tensor


@dataclass(frozen=True, slots=True)
class SitePair:
    """A target site, the source site that it takes its update from, and the factor for shared layers."""

    source: Site
    target: Site
    source_shape: tuple[int, int]
    target_shape: tuple[int, int]
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Kernels:
    """Inner products of N anchors, float64. K: (N, N) between their source updates; k: (N,) from those to the
    adapter that is moved; G: (N, N) between their target updates; `own`: the adapter's inner product with
    itself."""

    K: Tensor
    k: Tensor
    G: Tensor
    self_inner: float


class AnchorPool(Protocol):
    """A pool of tasks with an adapter on both bases, at the sites that all of these and the adapter have."""

    @property
    def domains(self) -> Sequence[str]:
        """A label per anchor."""

    @property
    def pairs(self) -> tuple[SitePair, ...]:
        """The site pairs at which every anchor has an update on both sides."""

    def kernels(self, pair: SitePair, space: Space) -> Kernels:
        """Inner products at one site pair. Raises IncompatiblePair where `space` has none."""


@dataclass(frozen=True, slots=True)
class BasePairInfo:
    """Both bases as far as a method's `prepare` may look: configs, paired sites, and for a method that needs
    ANCHORS the pool's inner products. No tensors of a base or an adapter."""

    source_config: Mapping[str, Any]
    target_config: Mapping[str, Any]
    sites: tuple[SitePair, ...]
    anchor_pool: AnchorPool | None = None


class SiteEvidence(Protocol):
    """Evidence for one site pair, read lazily; only what the method declared in `needs` may be asked for."""

    def weight(self, side: Side) -> Tensor:
        """The base weight of this site, (o, i) float32. WEIGHTS."""

    def factors(self, side: Side, rank: int) -> Factors:
        """Truncated SVD of the base weight, rank clipped to min(o, i). FACTORS."""

    def embedding_rows(self, side: Side, port: Port) -> Tensor:
        """Paired rows of what the site reads or writes, (n, width) float32. EMBEDDINGS."""

    def cached_by_site(self, entry_name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Small float32 tensors, none empty, that depend on the two bases and this site pair alone: computed
        once per pair of bases and shared tokens, and found again by every further adapter. EMBEDDINGS.

        `what` starts with a word for people, and names every setting and algorithm version they depend on.
        """

    def moments(self, port: Port) -> Moments:
        """Sums over what both sides read or write on the same text. ACTIVATIONS."""

    def held_out_rows(self, port: Port) -> PairedRows:
        """Some rows of passages that `moments` has not seen. ACTIVATIONS."""

    def rows(self, port: Port, max_rows: int) -> PairedRows:
        """The first `most` rows of those that `moments` sums up, the semantic primes' before the corpus's.
        ACTIVATIONS."""

    def cached_by_hook(
        self, port: Port, entry_name: str, compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """As `kept`, for what depends on the two bases, their text and the place where this site reads or
        writes; sites that read the same share it. ACTIVATIONS."""

    def trained_update(self) -> LowRank:
        """This target site's part of an update that was trained as a whole, (o_t, i_t). TRAINED."""

    def trained_maps(self) -> SiteMaps:
        """Maps of this site pair that were trained through both bases. HEADS."""

    def anchor_updates(self) -> Sequence[LowRank]:
        """The anchors' updates of this target site, in the pool's order, each (o_t, i_t). ANCHORS."""


@dataclass(frozen=True, slots=True)
class SiteResult:
    """A site's new update with named measurements (finite floats) and flags (short snake_case warnings)."""

    delta: LowRank
    measurements: dict[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AnchorWeight:
    """One anchor's part in a prediction: its weight, its leverage h_ii in [0, 1], and its relative error when
    it is left out and predicted from the others."""

    weight: float
    leverage: float
    loo_error: float


@dataclass(frozen=True, slots=True)
class MethodState:
    """State of a job that has something to tell as a whole. `measurements`: finite floats; `anchors`: one per
    anchor; `curve`: what each setting gave when anchors were left out."""

    measurements: Mapping[str, float]
    anchor_weights: tuple[AnchorWeight, ...] = ()
    curve: tuple[Mapping[str, float], ...] = ()


P_contra = TypeVar("P_contra", bound=MethodParams, contravariant=True)


class Method(Protocol, Generic[P_contra]):
    """One transfer method. Both functions are pure; same inputs, same bytes."""

    name: ClassVar[str]

    def needs(self, params: P_contra) -> frozenset[Evidence]:
        """The evidence that `carry` will ask for with these parameters."""

    def prepare(self, params: P_contra, pair: BasePairInfo) -> Any:
        """Once per job: small state for `carry`. Raises IncompatiblePair before any expensive work.

        The state may carry measurements of the whole job: `Prepared` says how.
        """

    def transfer_site(
        self, params: P_contra, state: Any, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> SiteResult:
        """One site. `delta`: the source update times `site.scale`, source shape; the result: target shape."""


def trained_site_result(site: SitePair, delta: LowRank, trained: LowRank) -> SiteResult:
    """This site's part of an update that was found as a whole, measured against the source's own: it is the
    target layer's, and shared out among none."""
    norm_before, norm_after = frobenius(delta) / site.scale, frobenius(trained)
    return SiteResult(
        trained,
        {"update_norm": norm_after, "norm_ratio": norm_after / norm_before if norm_before > 0.0 else 0.0},
    )
