"""A target that computes what the source computes in other coordinates, so that the right answer is known.

The residual stream of a Llama is turned by a random orthogonal matrix, exactly: norms with all-one gains
commute with it once their gains are folded into the weights that follow. Inside each MLP the neurons are
permuted, and inside each head the values are turned. Logits stay what they were.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from support.synthetic_sites import orthogonal


@torch.no_grad()
def without_gains(model: Any) -> Any:
    """The same function with every RMS gain folded into what reads it."""
    model = deepcopy(model)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for gain, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            for reader in readers:
                reader.weight *= gain.weight
            gain.weight.fill_(1.0)
    model.lm_head.weight *= model.model.norm.weight
    model.model.norm.weight.fill_(1.0)
    return model


@torch.no_grad()
def turned(model: Any, seed: int) -> Any:
    """An orthogonal re-parametrisation of a Llama without gains and with an untied head."""
    model = deepcopy(model)
    config = model.config
    R = orthogonal(config.hidden_size, seed).float()
    model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ R)
    model.lm_head.weight.copy_(model.lm_head.weight @ R)
    for number, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        for reader in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            reader.weight.copy_(reader.weight @ R)
        for writer in (attention.o_proj, mlp.down_proj):
            writer.weight.copy_(R.T @ writer.weight)
        order = torch.randperm(
            config.intermediate_size, generator=torch.Generator().manual_seed(seed + number)
        )
        mlp.gate_proj.weight.copy_(mlp.gate_proj.weight[order])
        mlp.up_proj.weight.copy_(mlp.up_proj.weight[order])
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, order])
        _turn_values(attention, config, seed + 100 * (number + 1))
    return model


def _turn_values(attention: Any, config: Any, seed: int) -> None:
    """Each value head in coordinates of its own; the output projection undoes it."""
    size, groups = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    values: Tensor = attention.v_proj.weight.view(config.num_key_value_heads, size, -1).clone()
    outputs: Tensor = attention.o_proj.weight.view(-1, config.num_attention_heads, size).clone()
    for head in range(config.num_key_value_heads):
        Q = orthogonal(size, seed + head).float()
        values[head] = Q.T @ values[head]
        for query in range(head * groups, (head + 1) * groups):
            outputs[:, query] = outputs[:, query] @ Q
    attention.v_proj.weight.copy_(values.reshape(attention.v_proj.weight.shape))
    attention.o_proj.weight.copy_(outputs.reshape(attention.o_proj.weight.shape))
