"""Cross-LoRA [001]: projects an update through the leading singular subspaces of both base weights.

With rank-k factors W ≈ U diag(S) Vᵀ of each base, the update's coordinates C = U_sᵀ ΔW_s V_s (k_s×k_s) become

    ΔW_t = U_t · Q_outᵀ · C · Q_in · V_tᵀ.

The paper's least-squares step has zero residual for orthonormal bases, so it does not determine Q_out and
Q_in. Four choices are offered: `index` uses the identity for both (j-th direction to j-th direction),
`anchored` fits them by orthogonal Procrustes on the embeddings of shared tokens, `activations` on both bases'
activations on the same text, and `projection` (equal shapes, as in [002]) stays in the common coordinates and
only projects: ΔW_t = U_tU_tᵀ ΔW_s V_tV_tᵀ.

`orthogonalize` removes the interference between the update's own directions (`_decouple`), `sweep` measures
further ranks on the same factors (`_ranks`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from torch import Tensor

from rebase.lora.linalg import frobenius
from rebase.lora.low_rank import Factors, LowRank, Role
from rebase.methods._alignment import Alignment, align, build_alignment_name
from rebase.methods._common import require_equal_shapes, require_sites
from rebase.methods.base import (
    PORTS,
    BasePairInfo,
    CorpusNeeds,
    Evidence,
    Method,
    Port,
    SiteEvidence,
    SitePair,
    SiteResult,
)
from rebase.methods.cross_lora._decouple import decouple, recouple
from rebase.methods.cross_lora._ranks import (
    energy_metrics,
    sweep_metrics,
    truncate_coordinates,
    truncate_factors,
)
from rebase.methods.cross_lora.params import CrossLoraParams
from rebase.methods.findings import MIN_SHARED_TOKENS, UNRELATED_DISTANCE, Finding, weigh_energy

# Maximum share of probe sites at which the shared tokens are uninformative.
_MAX_UNINFORMATIVE = 0.5

# benchmarks/results/2026-11-22-real-pair.md: SmolLM2-135M to Gemma-3-270M, `make bench NAME=real`.
_MEASURED_GAP = (
    "On the one real pair of families measured so far, it kept about 1% of what training on the target "
    "gains; activation with solve=step and distill, which learn from text that the source writes, got much "
    "further."
)

_RESIDUAL_WRITERS = frozenset({Role.O, Role.DOWN})  # they write to the residual stream


class CrossLora(Method[CrossLoraParams]):
    """Rank-preserving: only B and A are multiplied, no dense update is built."""

    name: ClassVar[str] = "cross_lora"

    def needs(self, params: CrossLoraParams) -> frozenset[Evidence]:
        """Factors of both bases; also embeddings of shared tokens (`anchored`) or paired activations
        (`activations`)."""
        row_evidence = {"anchored": {Evidence.EMBEDDINGS}, "activations": {Evidence.ACTIVATIONS}}
        return frozenset({Evidence.FACTORS} | row_evidence.get(params.alignment, set()))

    def prepare(self, params: CrossLoraParams, pair: BasePairInfo) -> None:
        """Raises IncompatiblePair, listing the sites, when `projection` is used with unequal shapes."""
        require_sites(pair)
        if params.alignment == "projection":
            require_equal_shapes(
                pair, "cross_lora with alignment=projection", "Use alignment=anchored across shapes."
            )

    def default_candidates(
        self, *, has_pool: bool, allow_text: bool, allow_training: bool
    ) -> tuple[CrossLoraParams, ...]:
        """The defaults."""
        return (CrossLoraParams(),)

    def corpus_needs(self, params: CrossLoraParams) -> CorpusNeeds:
        """Individual rows to align on, with `activations` only."""
        return CorpusNeeds(rows=params.anchor_tokens if params.alignment == "activations" else 0)

    def can_probe(self, params: CrossLoraParams, measured: Mapping[str, float]) -> bool:
        """Not if there are too few shared tokens to align on; the findings then say so."""
        return params.alignment != "anchored" or measured.get("shared_tokens", 0.0) >= MIN_SHARED_TOKENS

    def findings(self, params: CrossLoraParams, measured: Mapping[str, float]) -> Iterator[Finding]:
        """Unrelated bases, arbitrary pairing, lost energy, and missing or uninformative shared tokens."""
        distance = measured.get("relative_distance")
        if measured["shapes_equal"] < 1.0 or distance is None or distance > UNRELATED_DISTANCE:
            yield Finding("across_families", f"The bases are not relatives. {_MEASURED_GAP}", "doubt")
        if params.alignment == "index":
            text = (
                "alignment=index pairs singular vectors by order, which is arbitrary between different "
                "models."
            )
            yield Finding("index_alignment", text, "doubt")
        yield from _find_energy_losses(measured)
        if params.alignment == "anchored":
            yield from _find_shared_token_problems(measured)

    def transfer_site(
        self, params: CrossLoraParams, state: None, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> SiteResult:
        """ΔW (o_s, i_s) → ΔW (o_t, i_t) of the same rank, with the measurements of docs/methods.md.

        With a sweep, factors are computed once at the largest rank, and the leading `rank` directions used.
        """
        max_rank = max((params.rank, *params.sweep))
        widest_s, widest_t = evidence.factors("source", max_rank), evidence.factors("target", max_rank)
        source, target = truncate_factors(widest_s, params.rank), truncate_factors(widest_t, params.rank)
        norm_before = frobenius(delta)
        delta, singular_values = decouple(delta) if params.orthogonalize else (delta, None)
        measured: dict[str, float] = {}
        flags: tuple[str, ...] = ()
        if params.alignment == "projection":
            coordinates = LowRank(widest_t.U.T @ delta.B, delta.A @ widest_t.V)
            kept = mapped = truncate_coordinates(coordinates, params.rank)
        else:
            coordinates = LowRank(widest_s.U.T @ delta.B, delta.A @ widest_s.V)
            kept = truncate_coordinates(coordinates, params.rank)
            measured, flags, mapped = _map_coordinates(params, site, kept, source, target, evidence)
        if singular_values is not None:
            mapped, recouple_metrics = recouple(mapped, singular_values)
            measured |= recouple_metrics
        result = _expand_coordinates(target, mapped)
        if params.norm == "preserve" and (norm := frobenius(result)) > 0.0:
            result = result.scaled(norm_before / norm)
        measured |= energy_metrics(norm_before, kept, result, source, target)
        exact_norm = params.alignment not in {"anchored", "activations"}
        measured |= sweep_metrics(
            params.sweep, norm_before, coordinates, widest_s, widest_t, exact_norm=exact_norm
        )
        return SiteResult(result, measured, flags)


def _expand_coordinates(base: Factors, coordinates: LowRank) -> LowRank:
    """U C Vᵀ for coordinates C given as factors."""
    return LowRank(base.U @ coordinates.B, coordinates.A @ base.V.T)


def _map_coordinates(
    params: CrossLoraParams,
    site: SitePair,
    kept: LowRank,
    source: Factors,
    target: Factors,
    evidence: SiteEvidence,
) -> tuple[dict[str, float], tuple[str, ...], LowRank]:
    """Map source to target coordinates; also returns the alignment's measurements and flags."""
    if params.alignment == "index":
        k = min(source.S.numel(), target.S.numel())
        B, A = _resize_rows(kept.B, target.S.numel(), k), _resize_rows(kept.A.T, target.S.numel(), k).T
        return {}, ("index_alignment",), LowRank(B, A)
    if params.alignment == "activations":
        input_alignment, output_alignment = (
            _get_text_alignment(params, port, source, target, evidence) for port in PORTS
        )
    else:
        input_alignment, output_alignment = _get_alignments(site, source, target, evidence)
    mapped = LowRank(output_alignment.rotation.T @ kept.B, kept.A @ input_alignment.rotation)
    measured = {
        "anchor_tokens": float(input_alignment.fitted_rows),
        "anchor_residual_in": input_alignment.residual,
        "anchor_residual_out": output_alignment.residual,
        "anchor_null_in": input_alignment.shuffled_residual,
        "anchor_null_out": output_alignment.shuffled_residual,
        "anchor_reached_in": input_alignment.reachable_share,
        "anchor_reached_out": output_alignment.reachable_share,
    }
    too_few = min(input_alignment.fitted_rows, output_alignment.fitted_rows) < 2 * max(
        source.S.numel(), target.S.numel()
    )
    uninformative = not (input_alignment.is_informative and output_alignment.is_informative)
    flags = (("few_anchors",) if too_few else ()) + (("anchors_uninformative",) if uninformative else ())
    return measured, flags, mapped


def _get_alignments(
    site: SitePair, source: Factors, target: Factors, evidence: SiteEvidence
) -> tuple[Alignment, Alignment]:
    """The alignments of the site's inputs and of its outputs, fitted once per pair of bases.

    A fresh fit goes through the same tensors as a cached one, so both give the same bytes.
    """
    tensors = evidence.cached_by_site(
        build_alignment_name(source, target), lambda: _fit_alignments(site, source, target, evidence)
    )
    return Alignment.from_tensors(tensors, "in"), Alignment.from_tensors(tensors, "out")


def _fit_alignments(
    site: SitePair, source: Factors, target: Factors, evidence: SiteEvidence
) -> dict[str, Tensor]:
    """Orthogonal Procrustes on the site's inputs (X V) and outputs (Y U)."""
    X_s = evidence.embedding_rows("source", "in") @ source.V
    X_t = evidence.embedding_rows("target", "in") @ target.V
    input_alignment = align(X_s, X_t)
    if site.target.role in _RESIDUAL_WRITERS:
        Y_s = evidence.embedding_rows("source", "out") @ source.U
        Y_t = evidence.embedding_rows("target", "out") @ target.U
    else:
        # Y = X Wᵀ, so Y U = X V diag(S) exactly, without forming the o-wide product. The bias is left out: a
        # constant carries no information about directions of change.
        Y_s, Y_t = X_s * source.S, X_t * target.S
    return input_alignment.to_tensors("in") | align(Y_s, Y_t).to_tensors("out")


def _get_text_alignment(
    params: CrossLoraParams, port: Port, source: Factors, target: Factors, evidence: SiteEvidence
) -> Alignment:
    """The alignment of one port from both bases' activations on the same text, in factor coordinates."""

    def fit() -> dict[str, Tensor]:
        rows = evidence.rows(port, params.anchor_tokens)
        source_basis, target_basis = (source.V, target.V) if port == "in" else (source.U, target.U)
        return align(rows.source @ source_basis, rows.target @ target_basis).to_tensors(port)

    name = f"{build_alignment_name(source, target)} rows {params.anchor_tokens}"
    return Alignment.from_tensors(evidence.cached_by_hook(port, name, fit), port)


def _resize_rows(coordinates: Tensor, rows: int, k: int) -> Tensor:
    """The first k rows, zero-padded to `rows`: index matching between unequal numbers of directions."""
    out = coordinates.new_zeros(rows, coordinates.shape[1])
    out[:k] = coordinates[:k]
    return out


def _find_energy_losses(measured: Mapping[str, float]) -> Iterator[Finding]:
    kept = measured.get("energy_kept")
    if kept is not None and (weight := weigh_energy(kept)) is not None:
        text = f"The leading singular directions hold {kept:.0%} of the update; the rest is lost."
        yield Finding("little_energy", text, weight)
    if "energy_source" in measured:
        text = (
            f"The directions kept hold {measured['energy_source']:.0%} of the source's weights and "
            f"{measured['energy_target']:.0%} of the target's."
        )
        yield Finding("weight_energy", text, "info")


def _find_shared_token_problems(measured: Mapping[str, float]) -> Iterator[Finding]:
    shared = measured.get("shared_tokens", 0.0)
    if shared < MIN_SHARED_TOKENS:
        text = (
            f"The vocabularies share {shared:.0f} tokens; at least {MIN_SHARED_TOKENS} are needed as anchors."
        )
        yield Finding("no_anchors", text, "blocking")
        return
    if measured.get("flag_few_anchors", 0.0) > 0.0:
        text = f"{measured['anchor_tokens']:.0f} anchors are less than two per direction that is aligned."
        yield Finding("few_anchors", text, "doubt")
    if (share := measured.get("flag_anchors_uninformative", 0.0)) > 0.0:
        text = (
            f"At {share:.0%} of the probed modules the shared tokens align the bases no better than a "
            "shuffled pairing does, and nothing else pairs them."
        )
        yield Finding("anchors_uninformative", text, "blocking" if share > _MAX_UNINFORMATIVE else "doubt")
