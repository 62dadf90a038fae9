"""Log-probabilities of the tokens that are asked for, against a plain log softmax of one row at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rebase.models.causal_lm import CausalLM
from rebase.models.logprobs import PassLimits, compute_token_logprobs
from support.tiny_text import VOCABULARY, tiny_text_model

FAMILIES = ("llama", "gemma3_text", "gpt2")
ROWS = st.lists(
    st.tuples(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=24), st.integers(1, 24)),
    max_size=6,
)


def by_hand(base: CausalLM, ids: list[int], first: int) -> list[tuple[float, bool]]:
    with torch.no_grad():
        logits = base.model(input_ids=torch.tensor([ids])).logits[0]
    logs = logits.double().log_softmax(-1)
    places = range(first, len(ids))
    return [(float(logs[at - 1, ids[at]]), int(logits[at - 1].argmax()) == ids[at]) for at in places]


def same(found: list[list[tuple[float, bool]]], expected: list[list[tuple[float, bool]]]) -> None:
    assert [len(row) for row in found] == [len(row) for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        assert [log for log, _ in row] == pytest.approx([log for log, _ in wanted], abs=1e-4)
        assert [best for _, best in row] == [best for _, best in wanted]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("room", [2**26, 5 * VOCABULARY])  # all logits at once, or those of five places
@pytest.mark.parametrize("tokens", [2**12, 8])
def test_whatever_stands_side_by_side_each_token_has_its_own_chance(
    family: str, room: int, tokens: int
) -> None:
    base = tiny_text_model(family)
    limits = PassLimits(logits=room, tokens=tokens, min_chunk_tokens=1)

    @settings(max_examples=15, deadline=None)
    @given(ROWS)
    def check(asked: list[tuple[list[int], int]]) -> None:
        rows, firsts = [ids for ids, _ in asked], [first for _, first in asked]
        expected = [by_hand(base, ids, first) for ids, first in asked]
        same(compute_token_logprobs(base, rows, firsts, limits=limits), expected)

    check()


def test_only_the_places_that_are_asked_for_go_through_the_head() -> None:
    base = tiny_text_model("llama")
    through: list[int] = []
    handle = base.model.get_output_embeddings().register_forward_hook(
        lambda _, inputs, output: through.append(output.shape[-2])
    )
    compute_token_logprobs(base, [[1] * 40, [2] * 30], [38, 29])
    handle.remove()
    assert through == [3]
