"""Closed-form maps from paired activations (ours): A' = A·M_in, B' = M_out·B.

M_in and M_out are ridge regressions between the inputs and outputs of the two bases' sites on the same text
(`rebase.methods.activation_maps`). Widths, depths, head counts and tokenizers may all differ. The rank is
preserved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from rebase.lora.linalg import frobenius
from rebase.lora.low_rank import LowRank
from rebase.methods._common import require_sites
from rebase.methods.activation.params import ActivationParams
from rebase.methods.activation_maps import apply_maps, get_site_map, map_metrics
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
    trained_site_result,
)
from rebase.methods.findings import Finding


class Activation(Method[ActivationParams]):
    """Two matrix products per site once the maps are fitted."""

    name: ClassVar[str] = "activation"

    def needs(self, params: ActivationParams) -> frozenset[Evidence]:
        """Paired activations unless only the step is taken; a jointly trained update for the step, because
        the loss couples all sites."""
        maps = {Evidence.ACTIVATIONS} if params.solve != "step" else set()
        step = {Evidence.TRAINED} if params.solve != "maps" else set()
        return frozenset(maps | step)

    def prepare(self, params: ActivationParams, pair: BasePairInfo) -> None:
        """Raises IncompatiblePair if there are no sites."""
        require_sites(pair)

    def default_candidates(
        self, *, has_pool: bool, allow_text: bool, allow_training: bool
    ) -> tuple[ActivationParams, ...]:
        """The maps, and the step alone."""
        return (ActivationParams(), ActivationParams(solve="step")) if allow_text else ()

    def corpus_needs(self, params: ActivationParams) -> CorpusNeeds:
        """Second moments only, no individual rows."""
        return CorpusNeeds(positions=params.positions, writes=params.writes)

    def findings(self, params: ActivationParams, measured: Mapping[str, float]) -> Iterator[Finding]:
        """States which text the step is solved on."""
        if self.is_trained(params):
            text = (
                f"The step is solved on {params.written.tokens} tokens that the source writes, from the "
                "target's own gradients. How much it helped is measured on held-out text of the same kind."
            )
            yield Finding("steps", text, "info")

    def train(self, params: ActivationParams, trainer: Trainer[T]) -> T | None:
        """Take the step, alone or starting from the mapped update."""
        if not self.is_trained(params):
            return None
        return trainer.take_step(
            params.written, ridge=params.ridge, from_maps=Evidence.ACTIVATIONS in self.needs(params)
        )

    def transfer_site(
        self, params: ActivationParams, state: None, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> SiteResult:
        """ΔW (o_s, i_s) → ΔW (o_t, i_t). Measures the input and output R² and the norm ratio."""
        if params.solve != "maps":
            return trained_site_result(site, delta, evidence.trained_update())
        M_in, input_rows = get_site_map(evidence, "in", params.ridge)
        M_out, output_rows = get_site_map(evidence, "out", params.ridge)
        result = apply_maps(delta, M_in, M_out)
        norm_before, norm_after = frobenius(delta), frobenius(result)
        if params.norm == "preserve" and norm_after > 0.0:
            result = result.scaled(norm_before / norm_after)
        measured = {
            **map_metrics(delta, M_in, M_out, input_rows, output_rows),
            "norm_ratio": norm_after / norm_before if norm_before > 0.0 else 0.0,
            "update_norm": frobenius(result),
        }
        return SiteResult(result, measured)
