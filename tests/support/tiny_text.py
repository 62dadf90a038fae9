"""Random models that read letters."""

from __future__ import annotations

import json

import torch
from tokenizers import Tokenizer

from benchmarks.synthetic import byte_level_tokenizer
from rebase.models.causal_lm import CausalLM
from support.tiny_models import tiny_model, weights_of

VOCABULARY = 96  # more than there are letters


def tiny_text_model(family: str) -> CausalLM:
    """Its tokens are single letters and the space."""
    model = tiny_model(family)
    return CausalLM(
        model=model,
        tokenizer=Tokenizer.from_str(json.dumps(byte_level_tokenizer([*"abcdefghijklmnopqrstuvwxyz", "Ġ"]))),
        weights=weights_of(model),
        device=torch.device("cpu"),
        bos_id=None,
        eos_ids=(2,),
    )
