"""`auto`'s rules, on figures alone."""

from __future__ import annotations

import pytest

from rebase.methods.activation.params import ActivationParams
from rebase.methods.anchor_ridge.params import AnchorRidgeParams
from rebase.methods.auto.params import AutoParams
from rebase.methods.auto.rules import choose
from rebase.methods.base_params import DareParams, RefineParams
from rebase.methods.copy.params import CopyParams
from rebase.methods.distill.params import DistillParams
from rebase.methods.params import parse_params
from rebase.precheck.rules import list_findings
from rebase.schemas.thresholds import Thresholds

RELATIVES = {"shapes_equal": 1.0, "relative_distance": 0.3}
STRANGERS = {"shapes_equal": 0.0}
ALIKE = {"cka_coverage": 0.9, "read_r2_centred": 0.97, "write_r2_centred": 0.98}
SOMEWHAT = {"cka_coverage": 0.6, "read_r2_centred": 0.8, "write_r2_centred": 0.5}


@pytest.mark.parametrize(
    ("measured", "train", "name"),
    [
        (RELATIVES | {"pool_anchors": 9.0} | ALIKE, True, "copy"),
        (STRANGERS | {"pool_anchors": 9.0} | ALIKE, True, "anchor_ridge"),
        (STRANGERS | ALIKE, True, "distill"),
        (STRANGERS, True, "distill"),
        (STRANGERS | ALIKE, False, "activation"),
        (STRANGERS | SOMEWHAT, False, "activation"),
        (STRANGERS | SOMEWHAT | {"cka_coverage": 0.44}, False, "cross_lora"),
        (STRANGERS | SOMEWHAT | {"write_r2_centred": 0.1}, False, "cross_lora"),
        (STRANGERS, False, "cross_lora"),
        ({"shapes_equal": 1.0, "relative_distance": 1.4}, True, "distill"),
    ],
)
def test_the_first_rule_that_fits_decides_and_says_so(
    measured: dict[str, float], train: bool, name: str
) -> None:
    chosen, why = choose(AutoParams(train=train), measured)
    assert chosen.name == name
    assert why[0].code == f"auto_{name}"
    assert why[0].message.startswith(f"auto chose {name}")
    # Where nothing was trained between strangers, that training would carry the skill is said.
    untrained = name in {"activation", "cross_lora"}
    assert [reason.code for reason in why[1:]] == (["auto_would_train"] if untrained else [])
    assert not untrained or "method.train=true" in why[1].message


def test_untrained_between_strangers_is_a_doubt_unless_a_text_shows_them_alike() -> None:
    _, why = choose(AutoParams(), STRANGERS | ALIKE)
    assert why[1].weight == "info"
    for measured in (STRANGERS, STRANGERS | SOMEWHAT):
        _, why = choose(AutoParams(), measured)
        assert why[1].weight == "doubt"


def test_what_counts_as_alike_is_the_requests_own() -> None:
    strict = Thresholds(coverage_uncertain=0.65, coverage_compatible=0.7)
    chosen, _ = choose(AutoParams(), STRANGERS | SOMEWHAT, strict)
    assert chosen.name == "cross_lora"


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [
        (RELATIVES, CopyParams),
        (STRANGERS | {"pool_anchors": 3.0}, AnchorRidgeParams),
        (STRANGERS | ALIKE, ActivationParams),
    ],
)
def test_the_chosen_method_does_what_auto_was_asked_to_do(
    measured: dict[str, float], chosen: type[CopyParams]
) -> None:
    auto = AutoParams(layer_scale=False, fold=True, dare=DareParams(p=0.5), refine=RefineParams(steps=3))
    found, _ = choose(auto, measured)
    assert found == chosen(layer_scale=False, fold=True, dare=DareParams(p=0.5), refine=RefineParams(steps=3))


def test_a_method_that_folds_by_default_goes_on_doing_so() -> None:
    found, _ = choose(AutoParams(), STRANGERS | ALIKE)
    assert found == ActivationParams()
    assert found.fold


def test_a_named_method_is_left_as_it_is() -> None:
    assert choose(DistillParams(steps=3), STRANGERS) == (DistillParams(steps=3), ())


@pytest.mark.parametrize(
    ("method", "weight"), [({"solve": "maps"}, "blocking"), ({"solve": "step"}, "doubt")]
)
def test_what_every_token_shares_saves_no_map_and_the_step_needs_none(method, weight):
    """The figures of SmolLM2-135M to Gemma-3-270M: high by power, low by what tells tokens apart."""
    measured = {
        "sites_covered": 1.0,
        "shapes_equal": 0.0,
        "read_r2": 0.76,
        "write_r2": 0.76,
        "read_r2_centred": 0.32,
        "write_r2_centred": 0.27,
    }
    found = {
        reason.code: reason
        for reason in list_findings(parse_params({"name": "activation"} | method), measured, Thresholds())
    }
    assert found["adapter_on_text"].weight == weight
    assert "32%" in found["adapter_on_text"].message
    assert ("steps" in found) == (method["solve"] == "step")
