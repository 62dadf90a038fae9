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
from rebase.models.empty_model import build_model_config
from rebase.models.loading import load_streamed_model, load_transformers_model
from rebase.models.partial_model import PartialModel
from rebase.models.weights import ModelWeights

# Without a leading BOS, Gemma's loss rises from 4.0 to 6.9 nats per token, and a tokenizer.json converted
# from another format may lack the step that adds it.
_BOS_MODEL_TYPES = ("gemma",)


@dataclass(frozen=True, slots=True)
class Encoding:
    """A text as tokenized for one model: token ids, and each token's (start, end) character span in the text.
    Special tokens have an empty span."""

    ids: list[int]
    offsets: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class TokenizerWithBos:
    """A tokenizer as a model uses it. `max_positions`: the model's maximum sequence length."""

    tokenizer: Tokenizer
    bos_id: int | None
    max_positions: int = 2**31

    def encode(self, text: str, limit: int | None = None) -> Encoding:
        """The text's tokens, BOS in front where this model has one; at most `limit` of them."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        ids, offsets = list(encoding.ids), list(encoding.offsets)
        if self.bos_id is not None:
            ids, offsets = [self.bos_id, *ids], [(0, 0), *offsets]
        return Encoding(ids[:limit], offsets[:limit])


@dataclass(frozen=True, slots=True)
class CausalLM:
    """A causal language model with its tokenizer, in eval mode, with all parameters frozen.

    `eos`: ids that end a text. `bos`: the id that begins one, or None.
    """

    model: Any
    tokenizer: Tokenizer
    weights: ModelWeights
    device: torch.device
    bos_id: int | None
    eos_ids: tuple[int, ...]

    @property
    def architecture(self) -> Architecture:
        """Sizes and module names."""
        return self.weights.architecture

    def encode(self, text: str, limit: int | None = None) -> Encoding:
        """The text's tokens, BOS in front where this model has one; at most `limit` of them."""
        return TokenizerWithBos(self.tokenizer, self.bos_id).encode(text, limit)

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, without special tokens."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def get_module(self, site: Site) -> Any:
        """The linear module that computes this site, possibly fused with others."""
        name = self.architecture.get_module_name(site).removeprefix(self.architecture.root)
        return self.model.get_submodule(f"{self.architecture.family.root}{name}")

    def bias(self, site: Site) -> Tensor | None:
        """The site's bias, (o,) float32 on the model's device, or None. Streamed models reread it."""
        module_bias: Tensor | None = self.get_module(site).bias
        if module_bias is None:
            return None
        rows = self.get_output_rows(site)
        if module_bias.is_meta:
            site_bias = self.weights.bias(site)
            return None if site_bias is None else site_bias.to(self.device)
        return (module_bias if rows is None else module_bias[rows]).detach().float()

    def get_output_rows(self, site: Site) -> slice | Tensor | None:
        """The module's output rows that belong to the site; None for all."""
        return self.architecture.get_output_rows(site)


def load_base_model(
    weights: ModelWeights,
    reader: TensorReader,
    tokenizer_json: Mapping[str, Any],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    extra_eos_ids: Sequence[int] = (),
    streamed: bool = False,
) -> CausalLM:
    """Load the whole text model onto `device`. Raises UnsupportedModel if weights are missing.

    `ends`: end-of-text ids in addition to those in the config; ids outside the vocabulary are ignored.
    `streamed` leaves the weights on disk; each module's weights are read when it runs, then discarded.
    """
    text_config = _get_text_config(weights.config)
    if streamed:
        model = load_streamed_model(text_config, reader, device, dtype)
    else:
        model = load_transformers_model(text_config, dict(PartialModel().iter_weights(reader)), dtype).to(
            device
        )
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    tokenizer_with_bos = load_tokenizer(tokenizer_json, weights.config)
    return CausalLM(
        model=model,
        tokenizer=tokenizer_with_bos.tokenizer,
        weights=weights,
        device=device,
        bos_id=tokenizer_with_bos.bos_id,
        eos_ids=_find_eos_ids(weights.config, model.config, extra_eos_ids),
    )


def compute_logits_at(base: CausalLM, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits (count, vocabulary) at the positions of ids (n, length) that `where` (n, length), bool, selects.

    Other positions are not computed: with a vocabulary of 262,144 the head costs more than all the layers.
    """

    def select_positions(_head: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][mask][None], *inputs[1:])

    handle = base.model.get_output_embeddings().register_forward_pre_hook(select_positions)
    try:
        logits: Tensor = base.model(input_ids=ids, use_cache=False).logits[0]
    finally:
        handle.remove()
    return logits


def load_tokenizer(tokenizer_json: Mapping[str, Any], config: Mapping[str, Any]) -> TokenizerWithBos:
    """The tokenizer in a tokenizer.json, with this model's BOS. Raises UnsupportedModel if unreadable."""
    try:
        tokenizer = Tokenizer.from_str(json.dumps(_disable_trim_offsets(tokenizer_json)))
    except Exception as exc:  # the library raises plain Exception for whatever it cannot read
        raise UnsupportedModel(
            "The base's tokenizer.json cannot be read.", hint="Save the tokenizer again with transformers."
        ) from exc
    tokenizer.no_truncation()
    tokenizer.no_padding()
    text_config = _get_text_config(config)
    return TokenizerWithBos(tokenizer, _find_bos_id(tokenizer, text_config), _get_max_positions(text_config))


def _disable_trim_offsets(tokenizer_json: Mapping[str, Any]) -> dict[str, Any]:
    """The same tokenizer.json with untrimmed offsets: with trimming, as in GPT-NeoX's, a token of spaces only
    has an empty span and would be mistaken for a special token."""
    result = dict(tokenizer_json)
    post_processor = result.get("post_processor")
    if isinstance(post_processor, Mapping):
        processors = post_processor.get("processors")
        result["post_processor"] = (
            {**post_processor, "processors": [_disable_in_processor(processor) for processor in processors]}
            if isinstance(processors, list)
            else _disable_in_processor(post_processor)
        )
    return result


def _disable_in_processor(processor: Any) -> Any:
    return (
        {**processor, "trim_offsets": False}
        if isinstance(processor, Mapping) and "trim_offsets" in processor
        else processor
    )


def _get_text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(config.get("text_config") or config)


@contextmanager
def with_deltas(base: CausalLM, deltas: Mapping[Site, LowRank]) -> Iterator[None]:
    """Inside the block, the model computes y = W x + B (A x) at these sites.

    B and A may require gradients and may be modified in place between calls; they must be on the model's
    device.
    """
    modules: dict[str, list[Site]] = {}
    for site in deltas:
        modules.setdefault(base.architecture.get_module_name(site), []).append(site)
    with ExitStack() as hooks:
        for sites in modules.values():
            handle = base.get_module(sites[0]).register_forward_hook(_make_delta_hook(base, sites, deltas))
            hooks.callback(handle.remove)
        yield


def _make_delta_hook(base: CausalLM, sites: list[Site], deltas: Mapping[Site, LowRank]) -> Any:
    site_rows = [(site, base.get_output_rows(site)) for site in sites]

    def add_deltas(_module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        if len(site_rows) == 1 and site_rows[0][1] is None:
            return output + _apply_delta(x, deltas[site_rows[0][0]])
        total = torch.zeros_like(output)
        for site, rows in site_rows:
            site_output = _apply_delta(x, deltas[site])
            if rows is None:
                total = total + site_output
            elif isinstance(rows, slice):
                total[..., rows] = site_output
            else:
                total = total.index_copy(-1, rows.to(site_output.device), site_output)
        return output + total

    return add_deltas


def _apply_delta(x: Tensor, delta: LowRank) -> Tensor:
    return ((x.to(delta.A.dtype) @ delta.A.T) @ delta.B.T).to(x.dtype)


def _find_bos_id(tokenizer: Tokenizer, config: Mapping[str, Any]) -> int | None:
    """The id that the tokenizer itself prepends; else, for families that need one, the config's BOS."""
    with_special = tokenizer.encode("a", add_special_tokens=True).ids
    without_special = tokenizer.encode("a", add_special_tokens=False).ids
    if len(with_special) > len(without_special) and with_special[0] != without_special[0]:
        return int(with_special[0])
    needs_bos = str(config.get("model_type", "")).startswith(_BOS_MODEL_TYPES)
    bos = build_model_config(config).bos_token_id if needs_bos else None
    return int(bos) if isinstance(bos, int) else None


def _get_max_positions(config: Mapping[str, Any]) -> int:
    sizes = (config.get(key) for key in ("max_position_embeddings", "n_positions"))
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=2**31)


def _find_eos_ids(
    config: Mapping[str, Any], transformers_config: Any, extra_eos_ids: Sequence[int]
) -> tuple[int, ...]:
    """The EOS ids of the top-level config.json, else of the text config or its class defaults: multimodal
    Gemma 3 names them outside `text_config`, which omits defaults. They precede `ends`, because the first
    one separates documents and is the end token used in training."""
    eos = config.get("eos_token_id")
    eos = transformers_config.eos_token_id if eos is None else eos
    config_ids = [eos] if isinstance(eos, int) else eos if isinstance(eos, list) else []
    extra_ids = [id_ for id_ in extra_eos_ids if 0 <= id_ < int(transformers_config.vocab_size)]
    return tuple(dict.fromkeys([*map(int, config_ids), *extra_ids]))
