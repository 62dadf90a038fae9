"""What a transfer method is, and the small values that pass between it and the pipeline.

Orientation throughout is PEFT's: a linear layer is y = W x with W ∈ R^{o×i}; an update is ΔW = B A with
A ∈ R^{r×i}, B ∈ R^{o×r}, the LoRA scale already in B. A *site* is one linear role in one layer, after fused
modules were split (`q_proj`, never `qkv_proj`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar

from torch import Tensor

from rebase.lora.linalg import frobenius
from rebase.lora.low_rank import Factors, LowRank, Side, Site
from rebase.methods.base_params import DistillSettings, MethodParams, SamplingParams
from rebase.methods.findings import Finding

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
        once per pair of bases and shared tokens, and reused by every further adapter. EMBEDDINGS.

        `entry_name` starts with a word for people, and names every setting and algorithm version that they
        depend on.
        """

    def moments(self, port: Port) -> Moments:
        """Sums over what both sides read or write on the same text. ACTIVATIONS."""

    def held_out_rows(self, port: Port) -> PairedRows:
        """Some rows of passages that `moments` has not seen. ACTIVATIONS."""

    def rows(self, port: Port, max_rows: int) -> PairedRows:
        """The first `max_rows` rows of those that `moments` sums up, semantic primes before the corpus.
        ACTIVATIONS."""

    def cached_by_hook(
        self, port: Port, entry_name: str, compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """As `cached_by_site`, for what depends on the two bases, their text and the hook point of this
        site; sites that read the same share it. ACTIVATIONS."""

    def trained_update(self) -> LowRank:
        """This target site's part of an update that was trained as a whole, (o_t, i_t). TRAINED."""

    def trained_maps(self) -> SiteMaps:
        """Maps of this site pair that were trained through both bases. MAPS."""

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
    """State with measurements of the whole job. `measurements`: finite floats; `anchor_weights`: one per
    anchor; `curve`: what each setting gave when anchors were left out."""

    measurements: Mapping[str, float]
    anchor_weights: tuple[AnchorWeight, ...] = ()
    curve: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class CorpusNeeds:
    """How a method wants both bases to read a text.

    `positions`: paired token positions at most; `window`: tokens of a passage (None: the model's usual one);
    `rows`: positions that the method looks at one by one; `primes_first`: the semantic primes come before
    the corpus; `writes`: what o and down write is looked at in their own outputs or in the residual stream.
    """

    positions: int = 16384
    window: int | None = None
    rows: int = 0
    primes_first: bool = False
    writes: Literal["own", "stream"] = "own"


TRAINED_ON_TEXT = "with training on text that the source wrote"

P = TypeVar("P", bound=MethodParams)
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Trainer(Protocol[T_co]):
    """What the engine offers to methods that train. Both bases run; each call returns the trained evidence.

    All of them raise TrainingFailed when training brings nothing.
    """

    def take_step(self, sampling: SamplingParams, *, ridge: float, from_maps: bool) -> T_co:
        """One preconditioned step of the target on generated text; `from_maps`: beginning with the update
        that closed-form maps give."""

    def distill(
        self,
        params: DistillSettings,
        *,
        rank: int | None,
        init: Literal["zero", "closed_form", "step"],
    ) -> T_co:
        """Train an update of the target on generated text; `rank`: None takes the adapter's own."""

    def train_maps(self, params: Any) -> T_co:
        """Train maps between the bases' sites around the frozen adapter."""


class Method(Generic[P]):
    """One transfer method: everything about it. All functions are pure; same inputs, same bytes.

    A subclass names itself and implements `needs`, `prepare` and `transfer_site`; the other functions have
    the answer of a method that looks at weights alone.
    """

    name: ClassVar[str]

    keeps_coordinates: ClassVar[bool] = False
    """Coordinate j of a residual stream means the same before and after, so that token rows can be copied."""

    effort: ClassVar[str] = "without training"
    """What the work took, as the model card says it."""

    is_copy: ClassVar[bool] = False
    """The result is the source's own update, so that the control `pad` says nothing beside it."""

    def needs(self, params: P) -> frozenset[Evidence]:
        """The evidence that `transfer_site` will ask for with these parameters."""
        raise NotImplementedError

    def corpus_needs(self, params: P) -> CorpusNeeds:
        """How both bases are to read a text, where they read one."""
        return CorpusNeeds()

    def is_trained(self, params: P) -> bool:
        """Is the update trained on the target as a whole? It is then the target layer's own, shared out among
        none, and no module of the source is lost: the source generated text with its whole adapter."""
        return Evidence.TRAINED in self.needs(params)

    def folds_layers(self, params: P) -> bool:
        """Are the updates of several source layers added up for one target layer?"""
        return params.fold and not self.is_trained(params)

    def default_candidates(self, *, has_pool: bool, allow_text: bool, allow_training: bool) -> tuple[P, ...]:
        """The parameters with which `auto` tries this method when it chooses by measurement."""
        return ()

    def prepare(self, params: P, pair: BasePairInfo) -> Any:
        """Once per job: small state for `transfer_site`. Raises IncompatiblePair before any expensive work.

        A state with measurements of the whole job is a `MethodState`.
        """
        raise NotImplementedError

    def can_probe(self, params: P, measured: Mapping[str, float]) -> bool:
        """Can the pre-check run `transfer_site` at a few sites? Training is no pre-check."""
        return not self.needs(params) & {Evidence.TRAINED, Evidence.MAPS}

    def findings(self, params: P, measured: Mapping[str, float]) -> Iterator[Finding]:
        """What this method's measurements mean for the verdict."""
        yield from ()

    def unusable_reason(self, state: Any) -> str | None:
        """Why `auto` should leave this method aside after `prepare`; None where it may be used."""
        return None

    def train(self, params: P, trainer: Trainer[T]) -> T | None:
        """Train what `transfer_site` will ask for; None for methods that need no training."""
        return None

    def transfer_site(
        self, params: P, state: Any, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> SiteResult:
        """One site. `delta`: the source update times `site.scale`, source shape; the result: target shape."""
        raise NotImplementedError


def trained_site_result(site: SitePair, delta: LowRank, trained: LowRank) -> SiteResult:
    """This site's part of an update that was found as a whole, measured against the source's own: it is the
    target layer's, and shared out among none."""
    norm_before, norm_after = frobenius(delta) / site.scale, frobenius(trained)
    return SiteResult(
        trained,
        {"update_norm": norm_after, "norm_ratio": norm_after / norm_before if norm_before > 0.0 else 0.0},
    )
