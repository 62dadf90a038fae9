"""Running base models: transformers' own classes filled with a repo's tensors, plus the tokenizer.

Nothing is loaded by name and no code from a repo is ever run: the config selects one of the classes that ship
with transformers, and tensors come through the same validated readers as everywhere else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from rebase.errors import UnsupportedModel
from rebase.lora.low_rank import LowRank, Site
from rebase.lora.tensors import TensorReader
from rebase.models.architecture import Architecture
from rebase.models.empty_model import model_config
from rebase.models.loading import load_causal_lm, streamed_causal_lm
from rebase.models.partial_model import Cut
from rebase.models.weights import ModelWeights

# Without a leading BOS, Gemma's loss rises from 4.0 to 6.9 nats per token, and a tokenizer.json converted
# from another format may lack the step that adds it.
_NEEDS_BOS = ("gemma",)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text as tokenized for one model: token ids, and each token's (start, end) character span in the text.
    Special tokens have an empty span."""

    ids: list[int]
    offsets: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Words:
    """A tokenizer as a model uses it. `context`: the model's maximum sequence length."""

    tokenizer: Tokenizer
    bos: int | None
    context: int = 2**31

    def encode(self, text: str, limit: int | None = None) -> Encoded:
        """The text's tokens, BOS in front where this model has one; at most `limit` of them."""
        found = self.tokenizer.encode(text, add_special_tokens=False)
        ids, offsets = list(found.ids), list(found.offsets)
        if self.bos is not None:
            ids, offsets = [self.bos, *ids], [(0, 0), *offsets]
        return Encoded(ids[:limit], offsets[:limit])


@dataclass(frozen=True, slots=True)
class TextModel:
    """A causal language model with its tokenizer, in eval mode, with all parameters frozen.

    `eos`: ids that end a text. `bos`: the id that begins one, or None.
    """

    model: Any
    tokenizer: Tokenizer
    weights: ModelWeights
    device: torch.device
    bos: int | None
    eos: tuple[int, ...]

    @property
    def architecture(self) -> Architecture:
        """Sizes and module names."""
        return self.weights.architecture

    def encode(self, text: str, limit: int | None = None) -> Encoded:
        """The text's tokens, BOS in front where this model has one; at most `limit` of them."""
        return Words(self.tokenizer, self.bos).encode(text, limit)

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, without special tokens."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def module(self, site: Site) -> Any:
        """The linear module that computes this site, possibly fused with others."""
        name = self.architecture.module(site).removeprefix(self.architecture.root)
        return self.model.get_submodule(f"{self.architecture.family.root}{name}")

    def bias(self, site: Site) -> Tensor | None:
        """The site's bias, (o,) float32 on the model's device, or None. Streamed models reread it."""
        whole: Tensor | None = self.module(site).bias
        if whole is None:
            return None
        rows = self.rows(site)
        if whole.is_meta:
            found = self.weights.bias(site)
            return None if found is None else found.to(self.device)
        return (whole if rows is None else whole[rows]).detach().float()

    def rows(self, site: Site) -> slice | Tensor | None:
        """The module's output rows that belong to the site; None for all."""
        return self.architecture.rows(site.role)


def load(
    weights: ModelWeights,
    reader: TensorReader,
    tokenizer: Mapping[str, Any],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    ends: Sequence[int] = (),
    streamed: bool = False,
) -> TextModel:
    """Load the whole text model onto `device`. Raises UnsupportedModel if weights are missing.

    `ends`: end-of-text ids in addition to those in the config; ids outside the vocabulary are ignored.
    `streamed` leaves the weights on disk; each module's weights are read when it runs, then discarded.
    """
    text = _text_config(weights.config)
    if streamed:
        model = streamed_causal_lm(text, reader, device, dtype)
    else:
        model = load_causal_lm(text, dict(Cut().weights(reader)), dtype).to(device)
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    words = words_of(tokenizer, weights.config)
    return TextModel(
        model=model,
        tokenizer=words.tokenizer,
        weights=weights,
        device=device,
        bos=words.bos,
        eos=_eos(weights.config, model.config, ends),
    )


def logits_at(base: TextModel, ids: Tensor, where: Tensor) -> Tensor:
    """Logits (count, vocabulary) at the positions of ids (n, length) that `where` (n, length), bool, selects.

    Other positions are not computed: with a vocabulary of 262,144 the head costs more than all the layers.
    """

    def only(_head: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][where][None], *inputs[1:])

    handle = base.model.get_output_embeddings().register_forward_pre_hook(only)
    try:
        logits: Tensor = base.model(input_ids=ids, use_cache=False).logits[0]
    finally:
        handle.remove()
    return logits


def words_of(tokenizer: Mapping[str, Any], config: Mapping[str, Any]) -> Words:
    """The tokenizer in a tokenizer.json, with this model's BOS. Raises UnsupportedModel if unreadable."""
    try:
        words = Tokenizer.from_str(json.dumps(_untrimmed(tokenizer)))
    except Exception as exc:  # the library raises plain Exception for whatever it cannot read
        raise UnsupportedModel(
            "The base's tokenizer.json cannot be read.", hint="Save the tokenizer again with transformers."
        ) from exc
    words.no_truncation()
    words.no_padding()
    text = _text_config(config)
    return Words(words, _bos(words, text), _context(text))


def _untrimmed(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """The same tokenizer.json with untrimmed offsets: with trimming, as in GPT-NeoX's, a token of spaces only
    has an empty span and would be mistaken for a special token."""
    found = dict(tokenizer)
    step = found.get("post_processor")
    if isinstance(step, Mapping):
        steps = step.get("processors")
        found["post_processor"] = (
            {**step, "processors": [_whole(one) for one in steps]}
            if isinstance(steps, list)
            else _whole(step)
        )
    return found


def _whole(step: Any) -> Any:
    return {**step, "trim_offsets": False} if isinstance(step, Mapping) and "trim_offsets" in step else step


def _text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(config.get("text_config") or config)


@contextmanager
def updated(base: TextModel, deltas: Mapping[Site, LowRank]) -> Iterator[None]:
    """Inside the block, the model computes y = W x + B (A x) at these sites.

    B and A may require gradients and may be modified in place between calls; they must be on the model's
    device.
    """
    modules: dict[str, list[Site]] = {}
    for site in deltas:
        modules.setdefault(base.architecture.module(site), []).append(site)
    with ExitStack() as hooks:
        for sites in modules.values():
            handle = base.module(sites[0]).register_forward_hook(_adding(base, sites, deltas))
            hooks.callback(handle.remove)
        yield


def _adding(base: TextModel, sites: list[Site], deltas: Mapping[Site, LowRank]) -> Any:
    places = [(site, base.rows(site)) for site in sites]

    def add(_module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        if len(places) == 1 and places[0][1] is None:
            return output + _through(x, deltas[places[0][0]])
        extra = torch.zeros_like(output)
        for site, rows in places:
            part = _through(x, deltas[site])
            if rows is None:
                extra = extra + part
            elif isinstance(rows, slice):
                extra[..., rows] = part
            else:
                extra = extra.index_copy(-1, rows.to(part.device), part)
        return output + extra

    return add


def _through(x: Tensor, delta: LowRank) -> Tensor:
    return ((x.to(delta.A.dtype) @ delta.A.T) @ delta.B.T).to(x.dtype)


def _bos(words: Tokenizer, config: Mapping[str, Any]) -> int | None:
    """The id that the tokenizer itself prepends; else, for families that need one, the config's BOS."""
    added = words.encode("a", add_special_tokens=True).ids
    plain = words.encode("a", add_special_tokens=False).ids
    if len(added) > len(plain) and added[0] != plain[0]:
        return int(added[0])
    needed = str(config.get("model_type", "")).startswith(_NEEDS_BOS)
    bos = model_config(config).bos_token_id if needed else None
    return int(bos) if isinstance(bos, int) else None


def _context(config: Mapping[str, Any]) -> int:
    known = (config.get(key) for key in ("max_position_embeddings", "n_positions"))
    return min((size for size in known if isinstance(size, int) and size > 0), default=2**31)


def _eos(config: Mapping[str, Any], settings: Any, ends: Sequence[int]) -> tuple[int, ...]:
    """The EOS ids of the top-level config.json, else of the text config or its class defaults: multimodal
    Gemma 3 names them outside `text_config`, which omits defaults. They precede `ends`, because the first
    one separates documents and is the end token used in training."""
    found = config.get("eos_token_id")
    found = settings.eos_token_id if found is None else found
    own = [found] if isinstance(found, int) else found if isinstance(found, list) else []
    known = [id_ for id_ in ends if 0 <= id_ < int(settings.vocab_size)]
    return tuple(dict.fromkeys([*map(int, own), *known]))
