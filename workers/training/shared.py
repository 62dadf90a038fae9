"""The tokens on which a job compares what its two bases foretell."""

from __future__ import annotations

from rebase.errors import IncompatiblePair
from rebase.evidence.inputs import LoadedInputs
from rebase.methods.findings import MIN_SHARED_TOKENS
from rebase.training.losses import SharedTokenIds, select_shared_ids
from workers.verify.structure import model_config


def require_shared_tokens(inputs: LoadedInputs) -> SharedTokenIds:
    """Shared tokens of both bases. Raises IncompatiblePair where there are next to none."""
    tokens = inputs.vocabularies
    sizes = (
        int(model_config(base.config.get("text_config") or base.config).vocab_size)
        for base in (inputs.source, inputs.target)
    )
    shared_tokens = select_shared_ids(tokens, *sizes) if tokens is not None else None
    if shared_tokens is None or shared_tokens.size < MIN_SHARED_TOKENS:
        raise IncompatiblePair(
            f"The two vocabularies share {shared_tokens.size if shared_tokens else 0} tokens on which "
            "predictions could be "
            f"compared; {MIN_SHARED_TOKENS} are needed.",
            hint="Use a method that compares no predictions: activation, or distill with shift=0.",
            pointer="/method",
        )
    return shared_tokens
