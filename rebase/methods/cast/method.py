"""CAST, cartridge activation space transfer [004]: A' = A·M_in, B' = M_out·B with trained maps.

The maps (the paper's heads) are linear, so what the paper runs as a wrapper around the adapter folds exactly
into a plain LoRA of the same rank. The engine trains them, since training needs both models; this method
applies the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from torch import Tensor

from rebase.lora.linalg import frobenius
from rebase.lora.low_rank import LowRank
from rebase.methods._common import require_sites
from rebase.methods.activation_maps import apply_maps
from rebase.methods.base import (
    BasePairInfo,
    CorpusNeeds,
    Evidence,
    Method,
    SiteEvidence,
    SitePair,
    SiteResult,
    T,
    Trainer,
)
from rebase.methods.cast.params import CastParams
from rebase.methods.findings import MIN_SHARED_TOKENS, Finding

_MIN_TRAINED_SHARE = 0.5  # least share of the update's energy in directions in which the maps were trained


class Cast(Method[CastParams]):
    """Two matrix products per site once the maps are trained."""

    name: ClassVar[str] = "cast"
    effort: ClassVar[str] = "with trained maps between the two bases"

    def needs(self, params: CastParams) -> frozenset[Evidence]:
        """Trained maps only."""
        return frozenset({Evidence.MAPS})

    def prepare(self, params: CastParams, pair: BasePairInfo) -> None:
        """Raises IncompatiblePair if there are no sites."""
        require_sites(pair)

    def corpus_needs(self, params: CastParams) -> CorpusNeeds:
        """Passages as long as the training sequences."""
        return CorpusNeeds(positions=params.positions, window=params.tokens, writes=params.writes)

    def findings(self, params: CastParams, measured: Mapping[str, float]) -> Iterator[Finding]:
        """The training involved, missing shared tokens, and a caveat about the paper's objective."""
        text = (
            f"cast trains maps around the adapter on general text: at most {params.steps} steps with "
            f"sequences of {params.tokens} tokens. How closely the target matches the wanted probabilities "
            "is measured on held-out text."
        )
        yield Finding("trains", text, "info")
        if (shared := measured.get("shared_tokens", 0.0)) < MIN_SHARED_TOKENS:
            text = (
                f"The vocabularies share {shared:.0f} tokens; at least {MIN_SHARED_TOKENS} are needed to "
                "compare the bases' predictions."
            )
            yield Finding("no_shared_tokens", text, "blocking")
        if params.objective == "distribution":
            text = (
                "objective=distribution also trains the target to imitate the source base itself, not only "
                "the adapter's effect."
            )
            yield Finding("base_distilled", text, "doubt")

    def train(self, params: CastParams, trainer: Trainer[T]) -> T | None:
        """Train the maps."""
        return trainer.train_maps(params)

    def transfer_site(
        self, params: CastParams, state: None, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> SiteResult:
        """ΔW (o_s, i_s) → ΔW (o_t, i_t).

        `reads_trained`, `writes_trained`: the share of ‖ΔW‖² in directions in which the maps were trained; 1
        for the adapter that they were trained with.
        """
        maps = evidence.trained_maps()
        result = apply_maps(delta, maps.M_in, maps.M_out)
        norm_before, norm_after = frobenius(delta), frobenius(result)
        input_share, output_share = _compute_trained_shares(delta, maps.input_basis, maps.output_basis)
        measured = {
            "reads_trained": input_share,
            "writes_trained": output_share,
            "norm_ratio": norm_after / norm_before if norm_before > 0.0 else 0.0,
            "update_norm": norm_after,
        }
        flags = (
            ("heads_of_another_adapter",)
            if min(input_share, output_share) < _MIN_TRAINED_SHARE and norm_before > 0.0
            else ()
        )
        return SiteResult(result, measured, flags)


def _compute_trained_shares(delta: LowRank, input_basis: Tensor, output_basis: Tensor) -> tuple[float, float]:
    """‖ΔW P_in‖² / ‖ΔW‖² and ‖P_out ΔW‖² / ‖ΔW‖², P_in and P_out being the projectors onto the two bases."""
    total = frobenius(delta) ** 2
    if total == 0.0:
        return 0.0, 0.0
    input_energy = frobenius(LowRank(delta.B, (delta.A @ input_basis) @ input_basis.T)) ** 2
    output_energy = frobenius(LowRank(output_basis @ (output_basis.T @ delta.B), delta.A)) ** 2
    return min(input_energy / total, 1.0), min(output_energy / total, 1.0)
