"""Text that a model writes: in batches, seeded, with the keys and values of what stands already kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rebase.models.causal_lm import Encoded, TextModel

_TOP_CANDIDATES = 1024  # tokens that are looked at first
_MIN_ACTIVE_SHARE = (
    0.5  # rows that have ended are dropped from the batch when fewer than this share still write
)


def get_bos_id(base: TextModel) -> int | None:
    """What a text begins with: the BOS, or where the tokenizer puts none the token that divides documents."""
    if base.bos is not None:
        return base.bos
    bos = getattr(base.model.config, "bos_token_id", None)
    return bos if isinstance(bos, int) else next(iter(base.eos), None)


def encode_with_bos(base: TextModel, text: str, limit: int | None = None) -> Encoded:
    """The text's tokens with what a text begins with in front; at most `limit` of them."""
    encoded, bos = base.encode(text), get_bos_id(base)
    if base.bos is None and bos is not None:
        encoded = Encoded([bos, *encoded.ids], [(0, 0), *encoded.offsets])
    return Encoded(encoded.ids[:limit], encoded.offsets[:limit])


def get_max_positions(base: TextModel) -> int:
    """Positions that the model has."""
    return int(getattr(base.model.config, "max_position_embeddings", None) or 2**20)


@torch.no_grad()
def generate(
    base: TextModel,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    *,
    temperature: float,
    top_p: float,
    seed: int,
) -> list[list[int]]:
    """What the model writes after each prompt, at most `most` tokens, an EOS at the end where it came to one.

    Prompts are ids, none empty. Temperature 0 takes the likeliest token. The same arguments give the same ids
    on one machine. Raises FloatingPointError where there is nothing to draw from, as probabilities are not
    finite.
    """
    ids, mask = _pad_left(prompts)
    ids, mask = ids.to(base.device), mask.to(base.device)
    generator = torch.Generator(base.device).manual_seed(seed)
    eos_ids = torch.tensor(base.eos, dtype=torch.long, device=base.device)
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
    """One token a row from (rows, vocabulary) logits."""
    if temperature == 0.0:
        return logits.argmax(-1)
    probabilities = (logits / temperature).softmax(-1)
    # One logit that is no number leaves none in its row; on a GPU, drawing from such a row would leave the
    # process unable to use the device.
    if not bool(probabilities[:, 0].isfinite().all()):
        raise FloatingPointError("next-token probabilities are not finite")
    if top_p == 1.0:
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    # Sorting a whole vocabulary took two fifths of the writing; a few tokens are nearly always enough.
    for count in (_TOP_CANDIDATES, probabilities.shape[-1]):
        top_probabilities, top_ids = probabilities.topk(min(count, probabilities.shape[-1]), dim=-1)
        if float(top_probabilities.sum(-1).min()) >= top_p:
            break
    preceding_mass = (
        top_probabilities.cumsum(-1) - top_probabilities
    )  # the likeliest token has nothing before it and always stays
    choice = torch.multinomial(
        top_probabilities.masked_fill(preceding_mass >= top_p, 0.0), 1, generator=generator
    )
    return top_ids.gather(-1, choice)[:, 0]


def _pad_left(prompts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask, (n, longest) int64, padded in front so that all rows go on at one place."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask
