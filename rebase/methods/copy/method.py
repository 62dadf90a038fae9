"""SimpleCopy [002]: ΔW_t = ΔW_s. Copies the source update unchanged.

The baseline to beat: between a model and its close relatives it outperforms more elaborate methods.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from torch import Tensor

from rebase.lora.linalg import frobenius
from rebase.lora.low_rank import LowRank
from rebase.methods._common import require_equal_shapes, require_sites
from rebase.methods.base import BasePairInfo, Evidence, Method, SiteEvidence, SitePair, SiteResult
from rebase.methods.copy.params import CopyParams
from rebase.methods.findings import Finding, find_unrelated_bases


class Copy(Method[CopyParams]):
    """Reads no evidence. With `pad`, differing shapes are cropped or zero-padded (as a control)."""

    name: ClassVar[str] = "copy"
    keeps_coordinates: ClassVar[bool] = True
    is_copy: ClassVar[bool] = True

    def needs(self, params: CopyParams) -> frozenset[Evidence]:
        """Nothing."""
        return frozenset()

    def prepare(self, params: CopyParams, pair: BasePairInfo) -> None:
        """Raises IncompatiblePair, listing the sites, when shapes differ and `pad` is off."""
        if params.pad:
            require_sites(pair)
            return
        require_equal_shapes(
            pair,
            "copy",
            ("Use cross_lora, or set pad=true as a control; padding across shapes is not meaningful."),
        )

    def default_candidates(
        self, *, has_pool: bool, allow_text: bool, allow_training: bool
    ) -> tuple[CopyParams, ...]:
        """The defaults."""
        return (CopyParams(),)

    def findings(self, params: CopyParams, measured: Mapping[str, float]) -> Iterator[Finding]:
        """Unrelated bases of equal shapes, or padding. Without `pad`, `prepare` rejects unequal shapes."""
        if measured["shapes_equal"] == 1.0:
            yield from find_unrelated_bases(measured)
        elif params.pad:
            text = (
                "Cropping and padding between different shapes is not meaningful; it only serves as a "
                "control."
            )
            yield Finding("padded", text, "doubt")

    def transfer_site(
        self, params: CopyParams, state: None, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> SiteResult:
        """ΔW (o_s, i_s) → the same update, (o_t, i_t)."""
        o, i = site.target_shape
        result = LowRank(_resize(delta.B, o, delta.rank), _resize(delta.A, delta.rank, i))
        norm_before, norm_after = frobenius(delta), frobenius(result)
        flags = () if site.source_shape == site.target_shape else ("padded",)
        ratio = {"norm_ratio": norm_after / norm_before} if norm_before > 0.0 else {}
        return SiteResult(result, {"update_norm": norm_after, **ratio}, flags)


def _resize(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """Crop or zero-pad to (rows, columns)."""
    if matrix.shape == (rows, columns):
        return matrix
    out = matrix.new_zeros(rows, columns)
    overlap = matrix[:rows, :columns]
    out[: overlap.shape[0], : overlap.shape[1]] = overlap
    return out
