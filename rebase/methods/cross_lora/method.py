"""Cross-LoRA [001]: carry an update through the leading singular subspaces of both base weights.

With rank-k factors W ≈ U diag(S) Vᵀ of each base, the update's coordinates C = U_sᵀ ΔW_s V_s (k_s×k_s) become

    ΔW_t = U_t · Q_outᵀ · C · Q_in · V_tᵀ.

The paper's least-squares step has no residual for orthonormal bases, so it leaves Q_out and Q_in open. Four
readings: `index` takes both as the identity (j-th direction to j-th direction), `anchored` fits them by
orthogonal Procrustes on embeddings that the two models share, `activations` on what both compute from one
text, and `projection` (equal shapes, [002]'s reading) stays in the common coordinates and only projects:
ΔW_t = U_tU_tᵀ ΔW_s V_tV_tᵀ.

`orthogonalize` keeps the update's own directions from getting into each other's way (`methods.directions`),
`sweep` measures further ranks on the same factors (`methods.ranks`).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from rebase.lora.low_rank import Factors, LowRank, Role
from rebase.methods._alignment import Alignment, align, build_alignment_name
from rebase.methods._common import require_equal_shapes, require_sites
from rebase.methods.base import PORTS, BasePairInfo, Evidence, Port, SiteEvidence, SitePair, SiteResult
from rebase.methods.cross_lora._decouple import decouple, recouple
from rebase.methods.cross_lora._ranks import (
    energy_metrics,
    sweep_metrics,
    truncate_coordinates,
    truncate_factors,
)
from rebase.methods.cross_lora.params import CrossLoraParams
from transfer.linalg import frobenius

_RESIDUAL_WRITERS = frozenset({Role.O, Role.DOWN})  # their outputs go to the residual stream


class CrossLora:
    """Rank-preserving: only B and A are multiplied, nothing dense is built."""

    name: ClassVar[str] = "cross_lora"

    def needs(self, params: CrossLoraParams) -> frozenset[Evidence]:
        """Factors of both bases; `anchored` also shared-vocabulary rows, `activations` those of a text."""
        row_evidence = {"anchored": {Evidence.EMBEDDINGS}, "activations": {Evidence.ACTIVATIONS}}
        return frozenset({Evidence.FACTORS} | row_evidence.get(params.alignment, set()))

    def prepare(self, params: CrossLoraParams, pair: BasePairInfo) -> None:
        """Raises IncompatiblePair when `projection` meets unequal shapes, listing the sites."""
        require_sites(pair)
        if params.alignment == "projection":
            require_equal_shapes(
                pair, "cross_lora with alignment=projection", "Use alignment=anchored across shapes."
            )

    def transfer_site(
        self, params: CrossLoraParams, state: None, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> SiteResult:
        """ΔW (o_s, i_s) → ΔW (o_t, i_t) of the same rank, with the measurements of docs/methods.md.

        With a sweep, factors are computed once at the largest rank and their leading `rank` directions used.
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
    """U C Vᵀ for coordinates C kept as factors."""
    return LowRank(base.U @ coordinates.B, coordinates.A @ base.V.T)


def _map_coordinates(
    params: CrossLoraParams,
    site: SitePair,
    kept: LowRank,
    source: Factors,
    target: Factors,
    evidence: SiteEvidence,
) -> tuple[dict[str, float], tuple[str, ...], LowRank]:
    """Source coordinates → target coordinates; measurements and flags of the alignment."""
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
    """How the two bases match in what the site reads and in what it writes: fitted once per pair of bases.

    A fresh fit passes through the same tensors as a kept one, so that both give the same bytes.
    """
    tensors = evidence.cached_by_site(
        build_alignment_name(source, target), lambda: _fit_alignments(site, source, target, evidence)
    )
    return Alignment.from_tensors(tensors, "in"), Alignment.from_tensors(tensors, "out")


def _fit_alignments(
    site: SitePair, source: Factors, target: Factors, evidence: SiteEvidence
) -> dict[str, Tensor]:
    """Procrustes for what the site reads (X V) and what it writes (Y U)."""
    X_s = evidence.embedding_rows("source", "in") @ source.V
    X_t = evidence.embedding_rows("target", "in") @ target.V
    input_alignment = align(X_s, X_t)
    if site.target.role in _RESIDUAL_WRITERS:
        Y_s = evidence.embedding_rows("source", "out") @ source.U
        Y_t = evidence.embedding_rows("target", "out") @ target.U
    else:
        # Y = X Wᵀ, so Y U = X V diag(S) exactly: the o-wide product is never formed. The bias is left out,
        # being a constant that says nothing about directions of change.
        Y_s, Y_t = X_s * source.S, X_t * target.S
    return input_alignment.to_tensors("in") | align(Y_s, Y_t).to_tensors("out")


def _get_text_alignment(
    params: CrossLoraParams, port: Port, source: Factors, target: Factors, evidence: SiteEvidence
) -> Alignment:
    """The same from what both bases read or write on one text, seen in the factors' coordinates."""

    def fit() -> dict[str, Tensor]:
        rows = evidence.rows(port, params.anchor_tokens)
        source_basis, target_basis = (source.V, target.V) if port == "in" else (source.U, target.U)
        return align(rows.source @ source_basis, rows.target @ target_basis).to_tensors(port)

    name = f"{build_alignment_name(source, target)} rows {params.anchor_tokens}"
    return Alignment.from_tensors(evidence.cached_by_hook(port, name, fit), port)


def _resize_rows(coordinates: Tensor, rows: int, k: int) -> Tensor:
    """The first k rows, zeros up to `rows`: index matching between unequal numbers of directions."""
    out = coordinates.new_zeros(rows, coordinates.shape[1])
    out[:k] = coordinates[:k]
    return out
