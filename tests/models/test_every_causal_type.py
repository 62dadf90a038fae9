"""Every causal model type of the installed transformers: moved between two equal models with equal logits, or
listed with the reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.causal_types import CAUSAL_TYPES, NOT_TRIED
from support.type_sweep import move_between_equal_models

# transformers, PEFT and torch warn about untrained and odd sizes of single types; what they load is compared.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("model_type", [name for name in CAUSAL_TYPES if name not in NOT_TRIED])
def test_an_adapter_on_every_linear_module_moves_with_equal_logits(model_type: str, tmp_path: Path) -> None:
    result = move_between_equal_models(model_type, tmp_path)
    assert result.effect > 1e-3
    assert result.error < 5e-3  # a router may send a token elsewhere on the last bit
    assert (result.verdict, result.left_behind) == ("compatible", ())


def test_at_least_120_types_are_carried_and_the_others_have_a_reason() -> None:
    assert len(CAUSAL_TYPES) - len(NOT_TRIED) >= 120
    assert set(NOT_TRIED) <= set(CAUSAL_TYPES)
    assert all(re.search(r"\w+ \w+ \w+", reason) for reason in NOT_TRIED.values())
