"""The `Method` interface, and the small values that pass between a method and the engine.

Shapes follow PEFT: a linear layer is y = W x with W ∈ R^{o×i}; an update is ΔW = B A with A ∈ R^{r×i},
B ∈ R^{o×r}, the LoRA scale already folded into B. A *site* is one linear role in one layer, after fused
modules have been split (`q_proj`, never `qkv_proj`).
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
    """What a method asks the engine to gather. Nothing is computed unless it is declared."""

    WEIGHTS = "weights"
    FACTORS = "factors"
    EMBEDDINGS = "embeddings"  # shared-vocabulary pseudo-activations
    ACTIVATIONS = "activations"
    MAPS = "maps"  # maps trained through both bases
    TRAINED = "trained"  # an update of the target, trained at all sites jointly
    ANCHORS = "anchors"
    VALIDATION = "validation"


@dataclass(frozen=True, slots=True)
class SiteMaps:
    """Trained maps of one site pair: x_s ≈ M_in x_t with M_in (i_s, i_t), y_t ≈ M_out y_s with M_out (o_t,
    o_s).

    `input_basis` (i_s, p), `output_basis` (o_s, p): orthonormal bases of the source directions in which the
    maps were trained; elsewhere they keep their initial values. p is 0 if nothing was trained at this pair.
    """

    M_in: Tensor
    M_out: Tensor
    input_basis: Tensor
    output_basis: Tensor


@dataclass(frozen=True, slots=True)
class SitePair:
    """A target site, the source site that its update comes from, and the factor for shared source layers."""

    source: Site
    target: Site
    source_shape: tuple[int, int]
    target_shape: tuple[int, int]
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Kernels:
    """Inner products of N anchors, float64. K: (N, N) between their source updates; k: (N,) between those and
    the adapter being transferred; G: (N, N) between their target updates; `self_inner`: the adapter's inner
    product with itself."""

    K: Tensor
    k: Tensor
    G: Tensor
    self_inner: float


class AnchorPool(Protocol):
    """A pool of tasks with an adapter on both bases, restricted to the sites that all adapters share."""

    @property
    def domains(self) -> Sequence[str]:
        """A label per anchor."""

    @property
    def pairs(self) -> tuple[SitePair, ...]:
        """The site pairs at which every anchor has an update on both sides."""

    def kernels(self, pair: SitePair, space: Space) -> Kernels:
        """Inner products at one site pair. Raises IncompatiblePair if they are not defined in `space`."""


@dataclass(frozen=True, slots=True)
class BasePairInfo:
    """What a method's `prepare` may see of both bases: configs, paired sites and, for a method that needs
    ANCHORS, the pool's inner products. No tensors of a base or an adapter."""

    source_config: Mapping[str, Any]
    target_config: Mapping[str, Any]
    sites: tuple[SitePair, ...]
    anchor_pool: AnchorPool | None = None


class SiteEvidence(Protocol):
    """Evidence for one site pair, read lazily; a method may only request what it declared in `needs`."""

    def weight(self, side: Side) -> Tensor:
        """The base weight of this site, (o, i) float32. WEIGHTS."""

    def factors(self, side: Side, rank: int) -> Factors:
        """Truncated SVD of the base weight, rank clipped to min(o, i). FACTORS."""

    def embedding_rows(self, side: Side, port: Port) -> Tensor:
        """Paired rows of the site's inputs or outputs, (n, width) float32. EMBEDDINGS."""

    def cached_by_site(self, entry_name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Small, non-empty float32 tensors that depend only on the two bases and this site pair: computed
        once per pair of bases and set of shared tokens, and reused for every later adapter. EMBEDDINGS.

        `entry_name` starts with a human-readable word and includes every setting and algorithm version that
        the tensors depend on.
        """

    def moments(self, port: Port) -> Moments:
        """Second moments of both sides' inputs or outputs on the same text. ACTIVATIONS."""

    def held_out_rows(self, port: Port) -> PairedRows:
        """Rows from held-out passages, which `moments` does not include. ACTIVATIONS."""

    def rows(self, port: Port, max_rows: int) -> PairedRows:
        """The first `max_rows` rows included in `moments`, semantic primes before the corpus. ACTIVATIONS."""

    def cached_by_hook(
        self, port: Port, entry_name: str, compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Like `cached_by_site`, for tensors that depend on the two bases, their text and the hook point of
        this site; sites with the same hook point share them. ACTIVATIONS."""

    def trained_update(self) -> LowRank:
        """This target site's part of a jointly trained update, (o_t, i_t). TRAINED."""

    def trained_maps(self) -> SiteMaps:
        """Maps of this site pair that were trained through both bases. MAPS."""

    def anchor_updates(self) -> Sequence[LowRank]:
        """The anchors' updates at this target site, in pool order, each (o_t, i_t). ANCHORS."""


@dataclass(frozen=True, slots=True)
class SiteResult:
    """A site's new update with named measurements (finite floats) and flags (short snake_case warnings)."""

    delta: LowRank
    measurements: dict[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AnchorWeight:
    """One anchor's share in a prediction: its weight, its leverage h_ii in [0, 1], and its relative
    leave-one-out error."""

    weight: float
    leverage: float
    loo_error: float


@dataclass(frozen=True, slots=True)
class MethodState:
    """A method's state with measurements of the whole job. `measurements`: finite floats; `anchor_weights`:
    one per anchor; `curve`: the leave-one-out error of each setting."""

    measurements: Mapping[str, float]
    anchor_weights: tuple[AnchorWeight, ...] = ()
    curve: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class CorpusNeeds:
    """How a method wants both bases to be run on a text.

    `positions`: maximum number of paired token positions; `window`: tokens per passage (None: the default);
    `rows`: positions whose rows are kept individually; `primes_first`: put the semantic primes before the
    corpus; `writes`: take the outputs of o and down from the modules themselves or from the residual stream.
    """

    positions: int = 16384
    window: int | None = None
    rows: int = 0
    primes_first: bool = False
    writes: Literal["own", "stream"] = "own"


TRAINED_ON_TEXT = "with training on text generated by the source"

P = TypeVar("P", bound=MethodParams)
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Trainer(Protocol[T_co]):
    """What the engine offers to methods that train. Both bases run; each call returns the trained evidence.

    Every call raises TrainingFailed when training brings no improvement.
    """

    def take_step(self, sampling: SamplingParams, *, ridge: float, from_maps: bool) -> T_co:
        """One preconditioned step of the target on generated text; `from_maps`: start from the update given
        by the closed-form maps."""

    def distill(
        self,
        params: DistillSettings,
        *,
        rank: int | None,
        init: Literal["zero", "closed_form", "step"],
    ) -> T_co:
        """Train an update of the target on generated text; `rank`: None uses the adapter's rank."""

    def train_maps(self, params: Any) -> T_co:
        """Train maps between the bases' sites around the frozen adapter."""


class Method(Generic[P]):
    """Everything about one transfer method. All functions are pure: the same inputs give the same bytes.

    A subclass sets `name` and implements `needs`, `prepare` and `transfer_site`; the defaults of the other
    functions suit a method that only looks at weights.
    """

    name: ClassVar[str]

    keeps_coordinates: ClassVar[bool] = False
    """Coordinate j of the residual stream means the same in both bases, so token rows can be copied."""

    effort: ClassVar[str] = "without training"
    """How the update was obtained, as worded in the model card."""

    is_copy: ClassVar[bool] = False
    """The result is the source's own update, so comparing it with the `pad` control is pointless."""

    def needs(self, params: P) -> frozenset[Evidence]:
        """The evidence that `transfer_site` requests with these parameters."""
        raise NotImplementedError

    def corpus_needs(self, params: P) -> CorpusNeeds:
        """How to run both bases on a text, if they are run on one at all."""
        return CorpusNeeds()

    def is_trained(self, params: P) -> bool:
        """Is the update trained on the target at all sites jointly? If so, no layer scaling applies and no
        source module is lost: the source generated the text with its complete adapter."""
        return Evidence.TRAINED in self.needs(params)

    def folds_layers(self, params: P) -> bool:
        """Are the updates of several source layers summed for one target layer?"""
        return params.fold and not self.is_trained(params)

    def default_candidates(self, *, has_pool: bool, allow_text: bool, allow_training: bool) -> tuple[P, ...]:
        """The parameter sets that `auto` tries for this method when it selects by measurement."""
        return ()

    def prepare(self, params: P, pair: BasePairInfo) -> Any:
        """Compute, once per job, a small state for `transfer_site`. Raises IncompatiblePair before any
        expensive work.

        A state that carries measurements of the whole job is a `MethodState`.
        """
        raise NotImplementedError

    def can_probe(self, params: P, measured: Mapping[str, float]) -> bool:
        """Can the pre-check run `transfer_site` at a few sites? Not if the method has to train first."""
        return not self.needs(params) & {Evidence.TRAINED, Evidence.MAPS}

    def findings(self, params: P, measured: Mapping[str, float]) -> Iterator[Finding]:
        """What this method's measurements mean for the verdict."""
        yield from ()

    def unusable_reason(self, state: Any) -> str | None:
        """Why `auto` should not use this method after `prepare`; None if it may be used."""
        return None

    def train(self, params: P, trainer: Trainer[T]) -> T | None:
        """Train what `transfer_site` will request; returns None if the method needs no training."""
        return None

    def transfer_site(
        self, params: P, state: Any, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> SiteResult:
        """Transfer one site. `delta`: the source update times `site.scale`, in source shape; the result is in
        target shape."""
        raise NotImplementedError


def build_trained_site_result(site: SitePair, delta: LowRank, trained: LowRank) -> SiteResult:
    """This site's part of a jointly trained update, with its norm relative to the unscaled source update:
    trained updates are not divided among target layers that share a source layer."""
    norm_before, norm_after = frobenius(delta) / site.scale, frobenius(trained)
    return SiteResult(
        trained,
        {"update_norm": norm_after, "norm_ratio": norm_after / norm_before if norm_before > 0.0 else 0.0},
    )
