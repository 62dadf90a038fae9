"""What the science reads of real bases is what Transformers computes with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rebase.evidence.embeddings import SharedTokenRows
from rebase.lora.linalg import factorize
from rebase.lora.low_rank import Role, Site
from rebase.methods._alignment import align
from rebase.models.vocabulary import SharedTokens, find_shared_tokens
from support.real_repos import Base

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

ANCHORS = 2048
RANK = 256


@pytest.fixture(params=["smollm2", "gemma3"])
def base(request: pytest.FixtureRequest) -> Base:
    found: Base = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def tokens(smollm2: Base, gemma3: Base) -> SharedTokens:
    return find_shared_tokens(smollm2.vocabulary, gemma3.vocabulary)


@pytest.fixture(scope="module")
def paired(smollm2: Base, gemma3: Base, tokens: SharedTokens) -> SharedTokenRows:
    count = tokens.source_ids.numel()
    pick = torch.linspace(0, count - 1, ANCHORS).round().long()
    return SharedTokenRows(
        smollm2.weights, gemma3.weights, tokens.source_ids[pick], tokens.target_ids[pick], inner_rows=ANCHORS
    )


def test_every_site_weight_is_the_models_own_parameter(base: Base) -> None:
    state = base.model.state_dict()
    assert len(base.weights.sites) == 7 * base.model.config.num_hidden_layers
    for site in base.weights.sites:
        name = base.weights.architecture.get_module_name(site)
        assert torch.equal(base.weights.weight(site), state[f"{name}.weight"]), name
        assert base.weights.bias(site) is None


def test_norms_equal_the_models_own_norm_modules(base: Base) -> None:
    x = torch.randn(5, base.model.config.hidden_size, generator=torch.Generator().manual_seed(0)) * 3
    gemma = "gemma" in base.model.config.model_type
    before_mlp = "pre_feedforward_layernorm" if gemma else "post_attention_layernorm"
    for index, layer in enumerate(base.model.model.layers):
        with torch.inference_mode():
            attention, mlp = layer.input_layernorm(x), getattr(layer, before_mlp)(x)
        torch.testing.assert_close(
            base.weights.load_norm(index, "attention")(x), attention, rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(base.weights.load_norm(index, "mlp")(x), mlp, rtol=1e-5, atol=1e-5)


def test_shared_tokens_read_the_same_in_both_tokenizers(
    smollm2: Base, gemma3: Base, tokens: SharedTokens
) -> None:
    count = tokens.source_ids.numel()
    print(
        f"\nshared tokens: {count} = {tokens.overlap_source:.1%} of SmolLM2's, "
        f"{tokens.overlap_target:.1%} of Gemma's; Jaccard {tokens.jaccard:.3f}"
    )
    assert count > 20_000
    assert not tokens.identical
    for row in range(0, count, 97):
        ours = smollm2.tokenizer.decode([int(tokens.source_ids[row])])
        theirs = gemma3.tokenizer.decode([int(tokens.target_ids[row])])
        assert "\ufffd" in ours or ours == theirs


def test_pseudo_activations_are_what_the_first_layer_computes_for_a_text_of_one_token(
    smollm2: Base, gemma3: Base, tokens: SharedTokens
) -> None:
    few = slice(0, None, tokens.source_ids.numel() // 6)
    ids = {"source": tokens.source_ids[few], "target": tokens.target_ids[few]}
    rows = SharedTokenRows(smollm2.weights, gemma3.weights, ids["source"], ids["target"])
    for side, base in (("source", smollm2), ("target", gemma3)):
        seen = _first_layer(base.model, ids[side])
        for role, port in (("q", "in"), ("q", "out"), ("k", "out"), ("v", "out"), ("o", "in")):
            ours = rows.rows(side, Site(0, Role(f"{role}_proj")), port)  # type: ignore[arg-type]
            torch.testing.assert_close(ours, seen[f"{role}_{port}"], rtol=1e-4, atol=1e-4)


def test_anchors_of_two_real_families_agree_better_than_shuffled_ones(
    smollm2: Base, gemma3: Base, paired: SharedTokenRows
) -> None:
    """Layers at a third of either depth. What `down` reads, the inner neurons, has little in common."""
    for role in Role:
        source, target = Site(10, role), Site(6, role)
        V_s = factorize(smollm2.weights.weight(source), RANK).V
        V_t = factorize(gemma3.weights.weight(target), RANK).V
        found = align(paired.rows("source", source, "in") @ V_s, paired.rows("target", target, "in") @ V_t)
        print(
            f"\n{role}: held-out residual {found.residual:.3f}, shuffled {found.shuffled_residual:.3f}",
            end="",
        )
        assert found.residual < found.shuffled_residual
        assert found.is_informative or role is Role.DOWN


def _first_layer(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """Inputs and outputs of layer 0's attention projections, each token as a text of its own."""
    attention = model.model.layers[0].self_attn
    seen: dict[str, Tensor] = {}
    hooks = []
    for letter in "qkvo":

        def keep(module: Any, inputs: tuple[Tensor], output: Tensor, letter: str = letter) -> None:
            seen[f"{letter}_in"], seen[f"{letter}_out"] = inputs[0][:, 0], output[:, 0]

        hooks.append(getattr(attention, f"{letter}_proj").register_forward_hook(keep))
    with torch.inference_mode():
        model.model(input_ids=ids[:, None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen
