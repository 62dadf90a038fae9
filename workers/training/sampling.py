"""Text that a model writes: in batches, seeded, with the keys and values of what stands already kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.models import Encoded, TextModel

_LIKELIEST = 1024  # tokens that are looked at first
_ALIVE = 0.5  # rows that have ended are dropped from the batch when fewer than this share still write


def opening(base: TextModel) -> int | None:
    """What a text begins with: the BOS, or where the tokenizer puts none the token that divides documents."""
    if base.bos is not None:
        return base.bos
    bos = getattr(base.model.config, "bos_token_id", None)
    return bos if isinstance(bos, int) else next(iter(base.eos), None)


def opened(base: TextModel, text: str, limit: int | None = None) -> Encoded:
    """The text's tokens with what a text begins with in front; at most `limit` of them."""
    found, first = base.encode(text), opening(base)
    if base.bos is None and first is not None:
        found = Encoded([first, *found.ids], [(0, 0), *found.offsets])
    return Encoded(found.ids[:limit], found.offsets[:limit])


def context(base: TextModel) -> int:
    """Positions that the model has."""
    return int(getattr(base.model.config, "max_position_embeddings", None) or 2**20)


@torch.no_grad()
def write(
    base: TextModel,
    prompts: Sequence[list[int]],
    most: int,
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
    ids, mask = _left_padded(prompts)
    ids, mask = ids.to(base.device), mask.to(base.device)
    generator = torch.Generator(base.device).manual_seed(seed)
    ends = torch.tensor(base.eos, dtype=torch.long, device=base.device)
    written: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # which prompt each row of the batch belongs to
    going = torch.ones(len(rows), dtype=torch.bool, device=base.device)
    past = None
    for _ in range(most):
        places = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        out = base.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        )
        past = out.past_key_values
        drawn = _draw(out.logits[:, -1].float(), temperature, top_p, generator)
        for row, token, alive in zip(rows, drawn.tolist(), going.tolist(), strict=True):
            if alive:
                written[row].append(token)
        going &= ~torch.isin(drawn, ends)
        if not bool(going.any()):
            break
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        ids = drawn[:, None]
        if float(going.float().mean()) < _ALIVE:
            alive_rows = going.nonzero()[:, 0]
            past.batch_select_indices(alive_rows)
            mask, ids, going = mask[alive_rows], ids[alive_rows], going[alive_rows]
            rows = [rows[at] for at in alive_rows.tolist()]
    return written


def _draw(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    """One token a row from (rows, vocabulary) logits."""
    if temperature == 0.0:
        return logits.argmax(-1)
    chances = (logits / temperature).softmax(-1)
    # One logit that is no number leaves none in its row; on a GPU, drawing from such a row would leave the
    # process unable to use the device.
    if not bool(chances[:, 0].isfinite().all()):
        raise FloatingPointError("next-token probabilities are not finite")
    if top_p == 1.0:
        return torch.multinomial(chances, 1, generator=generator)[:, 0]
    # Sorting a whole vocabulary took two fifths of the writing; a few tokens are nearly always enough.
    for most in (_LIKELIEST, chances.shape[-1]):
        ordered, order = chances.topk(min(most, chances.shape[-1]), dim=-1)
        if float(ordered.sum(-1).min()) >= top_p:
            break
    before = ordered.cumsum(-1) - ordered  # the likeliest token has nothing before it and always stays
    drawn = torch.multinomial(ordered.masked_fill(before >= top_p, 0.0), 1, generator=generator)
    return order.gather(-1, drawn)[:, 0]


def _left_padded(prompts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask, (n, longest) int64, padded in front so that all rows go on at one place."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask
