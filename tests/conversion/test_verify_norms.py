"""How long an update may be before it is taken for an accident."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pytest
import torch

from rebase.conversion.load import load_inputs
from rebase.conversion.plan import plan_conversion
from rebase.conversion.resolve import resolve_repos
from rebase.conversion.verify import MAX_GROWTH, MAX_RELATIVE_NORM_TRAINED, check_norms
from rebase.errors import VerificationFailed
from rebase.evidence.inputs import LoadedInputs
from rebase.hub.local import LocalHub
from rebase.lora.linalg import frobenius
from rebase.lora.low_rank import LowRank, Site
from rebase.report.progress import NullReporter
from rebase.schemas.conversions import ConversionRequest

HUB = LocalHub(Path(__file__).parents[2] / "examples" / "hub")


@cache
def opened() -> LoadedInputs:
    """The bundled adapter on its way from harbor-1 to harbor-2."""
    body = {"adapter": {"repo_id": "tiny/harbor-sql-lora"}, "target": {"repo_id": "tiny/harbor-2"}}
    plan = plan_conversion(ConversionRequest.model_validate(body))
    pinned, config, reader = resolve_repos(plan, HUB, NullReporter())
    return load_inputs(plan, HUB, pinned, config, reader, NullReporter())


def moved(norm_of: dict[int, float]) -> dict[Site, LowRank]:
    """The adapter's own updates, with those of some places given another Frobenius norm."""
    found = {}
    for place, pair in enumerate(opened().pairing.pairs):
        delta = opened().adapter.delta(pair.source)
        found[pair.target] = delta.scaled(norm_of[place] / frobenius(delta)) if place in norm_of else delta
    return found


def weight(place: int) -> float:
    """The norm of the target's own weight there."""
    return float(torch.linalg.vector_norm(opened().target.weight(opened().pairing.pairs[place].target)))


def grown(place: int) -> float:
    """A little more than the growth that is doubted."""
    pair = opened().pairing.pairs[place]
    return frobenius(opened().adapter.delta(pair.source)) * pair.scale * MAX_GROWTH * 1.01


def test_an_update_as_long_as_the_source_s_passes() -> None:
    check_norms(opened(), moved({}))


def test_one_that_grew_a_hundredfold_and_is_large_beside_the_weight_is_refused_by_site() -> None:
    site = opened().pairing.pairs[0].target
    with pytest.raises(VerificationFailed, match=str(site).replace(".", r"\.")):
        check_norms(opened(), moved({0: max(grown(0), weight(0))}))


def test_one_that_was_trained_may_be_longer_since_it_was_measured_on_text_it_never_saw() -> None:
    between = moved({0: grown(0)})
    share = grown(0) / weight(0)
    with pytest.raises(VerificationFailed, match="grew"):
        check_norms(opened(), between, share * 0.9)
    check_norms(opened(), between, share * 1.1)
    with pytest.raises(VerificationFailed, match="grew"):
        check_norms(
            opened(),
            moved({0: max(grown(0), 1.1 * MAX_RELATIVE_NORM_TRAINED * weight(0))}),
            MAX_RELATIVE_NORM_TRAINED,
        )


@pytest.mark.parametrize(("norm", "says"), [(math.inf, "not finite"), (0.0, "is zero")])
def test_one_that_is_not_finite_or_nothing_is_refused(norm: float, says: str) -> None:
    with pytest.raises(VerificationFailed, match=says):
        check_norms(opened(), moved({0: norm}))
