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

from transfer.catalogue import CrossLoraParams
from transfer.interface import (
    PORTS,
    Carried,
    Evidence,
    Factors,
    LowRank,
    Pair,
    Port,
    Role,
    SiteEvidence,
    SitePair,
)
from transfer.linalg import frobenius
from transfer.methods.anchors import Alignment, align, alignment_name
from transfer.methods.directions import decouple, recouple
from transfer.methods.ranks import energies, leading, leading_coordinates, swept
from transfer.methods.refusals import require_equal_shapes, require_sites

_WRITERS = frozenset({Role.O, Role.DOWN})  # their outputs go to the residual stream


class CrossLora:
    """Rank-preserving: only B and A are multiplied, nothing dense is built."""

    name: ClassVar[str] = "cross_lora"

    def needs(self, params: CrossLoraParams) -> frozenset[Evidence]:
        """Factors of both bases; `anchored` also shared-vocabulary rows, `activations` those of a text."""
        pairs = {"anchored": {Evidence.EMBEDDINGS}, "activations": {Evidence.ACTIVATIONS}}
        return frozenset({Evidence.FACTORS} | pairs.get(params.alignment, set()))

    def prepare(self, params: CrossLoraParams, pair: Pair) -> None:
        """Raises IncompatiblePair when `projection` meets unequal shapes, listing the sites."""
        require_sites(pair)
        if params.alignment == "projection":
            require_equal_shapes(
                pair, "cross_lora with alignment=projection", "Use alignment=anchored across shapes."
            )

    def carry(
        self, params: CrossLoraParams, state: None, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> Carried:
        """ΔW (o_s, i_s) → ΔW (o_t, i_t) of the same rank, with the measurements of docs/methods.md.

        With a sweep, factors are computed once at the largest rank and their leading `rank` directions used.
        """
        most = max((params.rank, *params.sweep))
        widest_s, widest_t = evidence.factors("source", most), evidence.factors("target", most)
        source, target = leading(widest_s, params.rank), leading(widest_t, params.rank)
        before = frobenius(delta)
        delta, sizes = decouple(delta) if params.orthogonalize else (delta, None)
        measured: dict[str, float] = {}
        flags: tuple[str, ...] = ()
        if params.alignment == "projection":
            whole = LowRank(widest_t.U.T @ delta.B, delta.A @ widest_t.V)
            kept = turned = leading_coordinates(whole, params.rank)
        else:
            whole = LowRank(widest_s.U.T @ delta.B, delta.A @ widest_s.V)
            kept = leading_coordinates(whole, params.rank)
            measured, flags, turned = _turn(params, site, kept, source, target, evidence)
        if sizes is not None:
            turned, found = recouple(turned, sizes)
            measured |= found
        moved = _into(target, turned)
        if params.norm == "preserve" and (norm := frobenius(moved)) > 0.0:
            moved = moved.scaled(before / norm)
        measured |= energies(before, kept, moved, source, target)
        exact = params.alignment not in {"anchored", "activations"}
        measured |= swept(params.sweep, before, whole, widest_s, widest_t, exact_norm=exact)
        return Carried(moved, measured, flags)


def _into(base: Factors, coordinates: LowRank) -> LowRank:
    """U C Vᵀ for coordinates C kept as factors."""
    return LowRank(base.U @ coordinates.B, coordinates.A @ base.V.T)


def _turn(
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
        B, A = _resized(kept.B, target.S.numel(), k), _resized(kept.A.T, target.S.numel(), k).T
        return {}, ("index_alignment",), LowRank(B, A)
    if params.alignment == "activations":
        reads, writes = (_on_text(params, port, source, target, evidence) for port in PORTS)
    else:
        reads, writes = _alignments(site, source, target, evidence)
    turned = LowRank(writes.rotation.T @ kept.B, kept.A @ reads.rotation)
    measured = {
        "anchor_tokens": float(reads.fitted),
        "anchor_residual_in": reads.residual,
        "anchor_residual_out": writes.residual,
        "anchor_null_in": reads.null,
        "anchor_null_out": writes.null,
        "anchor_reached_in": reads.reached,
        "anchor_reached_out": writes.reached,
    }
    few = min(reads.fitted, writes.fitted) < 2 * max(source.S.numel(), target.S.numel())
    lost = not (reads.informative and writes.informative)
    flags = (("few_anchors",) if few else ()) + (("anchors_uninformative",) if lost else ())
    return measured, flags, turned


def _alignments(
    site: SitePair, source: Factors, target: Factors, evidence: SiteEvidence
) -> tuple[Alignment, Alignment]:
    """How the two bases match in what the site reads and in what it writes: fitted once per pair of bases.

    A fresh fit passes through the same tensors as a kept one, so that both give the same bytes.
    """
    found = evidence.kept(alignment_name(source, target), lambda: _fitted(site, source, target, evidence))
    return Alignment.from_tensors(found, "in"), Alignment.from_tensors(found, "out")


def _fitted(site: SitePair, source: Factors, target: Factors, evidence: SiteEvidence) -> dict[str, Tensor]:
    """Procrustes for what the site reads (X V) and what it writes (Y U)."""
    X_s = evidence.paired("source", "in") @ source.V
    X_t = evidence.paired("target", "in") @ target.V
    reads = align(X_s, X_t)
    if site.target.role in _WRITERS:
        Y_s = evidence.paired("source", "out") @ source.U
        Y_t = evidence.paired("target", "out") @ target.U
    else:
        # Y = X Wᵀ, so Y U = X V diag(S) exactly: the o-wide product is never formed. The bias is left out,
        # being a constant that says nothing about directions of change.
        Y_s, Y_t = X_s * source.S, X_t * target.S
    return reads.tensors("in") | align(Y_s, Y_t).tensors("out")


def _on_text(
    params: CrossLoraParams, port: Port, source: Factors, target: Factors, evidence: SiteEvidence
) -> Alignment:
    """The same from what both bases read or write on one text, seen in the factors' coordinates."""

    def fit() -> dict[str, Tensor]:
        rows = evidence.rows(port, params.anchor_tokens)
        ours, theirs = (source.V, target.V) if port == "in" else (source.U, target.U)
        return align(rows.source @ ours, rows.target @ theirs).tensors(port)

    name = f"{alignment_name(source, target)} rows {params.anchor_tokens}"
    return Alignment.from_tensors(evidence.kept_at(port, name, fit), port)


def _resized(coordinates: Tensor, rows: int, k: int) -> Tensor:
    """The first k rows, zeros up to `rows`: index matching between unequal numbers of directions."""
    out = coordinates.new_zeros(rows, coordinates.shape[1])
    out[:k] = coordinates[:k]
    return out
