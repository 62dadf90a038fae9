"""Seeded, batched text generation with a key-value cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rebase.models.causal_lm import CausalLM, Encoding

_TOP_CANDIDATES = 1024  # tokens considered first for top-p
_MIN_ACTIVE_SHARE = (
    0.5  # finished rows are dropped from the batch when fewer than this share are still generating
)


def get_bos_id(base: CausalLM) -> int | None:
    """The id that begins a text: the tokenizer's BOS, else the config's, else the first EOS."""
    if base.bos_id is not None:
        return base.bos_id
    bos = getattr(base.model.config, "bos_token_id", None)
    return bos if isinstance(bos, int) else next(iter(base.eos_ids), None)


def encode_with_bos(base: CausalLM, text: str, limit: int | None = None) -> Encoding:
    """The text's tokens preceded by `get_bos_id`; at most `limit` of them."""
    encoded, bos = base.encode(text), get_bos_id(base)
    if base.bos_id is None and bos is not None:
        encoded = Encoding([bos, *encoded.ids], [(0, 0), *encoded.offsets])
    return Encoding(encoded.ids[:limit], encoded.offsets[:limit])


def get_max_positions(base: CausalLM) -> int:
    """The model's maximum number of positions."""
    return int(getattr(base.model.config, "max_position_embeddings", None) or 2**20)


@torch.no_grad()
def generate(
    base: CausalLM,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    *,
    temperature: float,
    top_p: float,
    seed: int,
) -> list[list[int]]:
    """Continue each prompt by at most `max_new_tokens` tokens, including the EOS if one is generated.

    Prompts are lists of ids, none empty. Temperature 0 decodes greedily. The same arguments give the same ids
    on one machine. Raises FloatingPointError if next-token probabilities are not finite.
    """
    ids, mask = _pad_left(prompts)
    ids, mask = ids.to(base.device), mask.to(base.device)
    generator = torch.Generator(base.device).manual_seed(seed)
    eos_ids = torch.tensor(base.eos_ids, dtype=torch.long, device=base.device)
    generated: list[list[int]] = [[] for _ in prompts]
    prompt_indices = list(range(len(prompts)))  # which prompt each row of the batch belongs to
    active = torch.ones(len(prompt_indices), dtype=torch.bool, device=base.device)
    past = None
    for _ in range(max_new_tokens):
        position_ids = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        out = base.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        )
        past = out.past_key_values
        next_tokens = _sample_tokens(out.logits[:, -1].float(), temperature, top_p, generator)
        for row, token, is_active in zip(prompt_indices, next_tokens.tolist(), active.tolist(), strict=True):
            if is_active:
                generated[row].append(token)
        active &= ~torch.isin(next_tokens, eos_ids)
        if not bool(active.any()):
            break
        mask = torch.cat([mask, mask.new_ones(len(prompt_indices), 1)], dim=1)
        ids = next_tokens[:, None]
        if float(active.float().mean()) < _MIN_ACTIVE_SHARE:
            active_rows = active.nonzero()[:, 0]
            past.batch_select_indices(active_rows)
            mask, ids, active = mask[active_rows], ids[active_rows], active[active_rows]
            prompt_indices = [prompt_indices[at] for at in active_rows.tolist()]
    return generated


def _sample_tokens(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    """Sample one token per row from (rows, vocabulary) logits."""
    if temperature == 0.0:
        return logits.argmax(-1)
    probabilities = (logits / temperature).softmax(-1)
    # One NaN logit makes its whole row NaN, and on a GPU sampling from such a row triggers an assertion that
    # makes the device unusable for the process.
    if not bool(probabilities[:, 0].isfinite().all()):
        raise FloatingPointError("next-token probabilities are not finite")
    if top_p == 1.0:
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    # Sorting the whole vocabulary took 40 % of generation time; the top few tokens are nearly always enough.
    for count in (_TOP_CANDIDATES, probabilities.shape[-1]):
        top_probabilities, top_ids = probabilities.topk(min(count, probabilities.shape[-1]), dim=-1)
        if float(top_probabilities.sum(-1).min()) >= top_p:
            break
    preceding_mass = (
        top_probabilities.cumsum(-1) - top_probabilities
    )  # zero for the most likely token, which is therefore always kept
    choice = torch.multinomial(
        top_probabilities.masked_fill(preceding_mass >= top_p, 0.0), 1, generator=generator
    )
    return top_ids.gather(-1, choice)[:, 0]


def _pad_left(prompts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Left-padded ids and attention mask, both (n, longest) int64."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask
