"""Adapters of mlx-lm, read as if PEFT had written them.

mlx-lm adds scale · (x · lora_a) · lora_b to a linear module, with lora_a (i, r) and lora_b (r, o), and uses
`scale` as it stands. PEFT's update is (α/r) · B · A, so A = lora_aᵀ, B = lora_bᵀ and α = scale · r. Module
names are those of the Transformers checkpoint.
Format: https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/tuner/lora.py
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rebase.errors import MalformedAdapter, UnsupportedAdapter
from rebase.lora.config import CONFIG_FILE
from rebase.lora.tensors import TensorInfo, TensorReader

_PARTS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
_TABLE_PARTS = {"lora_a": "lora_embedding_A", "lora_b": "lora_embedding_B"}
_TABLES = frozenset({"embed_tokens", "wte", "embed_in"})
_PREFIX = "base_model.model."


def is_mlx_config(config: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json was written by mlx-lm."""
    return "peft_type" not in config and ("lora_parameters" in config or "fine_tune_type" in config)


def read_mlx_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same adapter's config as PEFT would write it.

    Raises UnsupportedAdapter for DoRA and for full fine-tuning, MalformedAdapter for invalid values.
    """
    parameters = config.get("lora_parameters")
    kind = config.get("fine_tune_type", "dora" if config.get("use_dora") else "lora")
    if kind == "full":
        raise UnsupportedAdapter(
            "This is a full fine-tuning by mlx-lm (fine_tune_type 'full'): whole weights, not a LoRA.",
            hint="Train with --fine-tune-type lora, or extract a LoRA from the difference of the two models.",
            pointer=CONFIG_FILE,
        )
    if kind != "lora":
        raise UnsupportedAdapter(
            f"This adapter of mlx-lm has fine_tune_type '{str(kind)[:40]}'; from mlx-lm, 'lora' is read.",
            hint="Train with --fine-tune-type lora.",
            pointer=CONFIG_FILE,
        )
    if not isinstance(parameters, Mapping):
        raise _make_malformed_error("has no lora_parameters")
    rank, scale, alpha = (parameters.get(name) for name in ("rank", "scale", "alpha"))
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise _make_malformed_error("lora_parameters.rank should be a positive integer")
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise _make_malformed_error("lora_parameters.scale should be a number")
    if alpha is not None and alpha != rank:
        raise UnsupportedAdapter(
            "lora_parameters has both 'scale' and 'alpha': early versions of mlx-lm multiplied the update by "
            "scale·alpha/rank, later ones by scale, and the file does not say which one trained it.",
            hint="Delete 'alpha' and set 'scale' to the factor that the training used.",
            pointer=CONFIG_FILE,
        )
    base = config.get("model")
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": scale * rank,
        "base_model_name_or_path": base if isinstance(base, str) else None,
    }


class MlxReader:
    """A `TensorReader` that shows the tensors of an mlx-lm adapter under PEFT's names, transposed."""

    def __init__(self, inner: TensorReader) -> None:
        self._inner = inner
        self._names = {_to_peft_name(name): name for name in inner.infos()}

    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor's dtype and shape. Raises UnsupportedAdapter for stacked experts and DoRA."""
        stored = self._inner.infos()
        return {name: _transpose_info(stored[inner], inner) for name, inner in self._names.items()}

    def read(self, name: str) -> Tensor:
        """One tensor in its stored dtype."""
        return self._inner.read(self._names[name]).T.contiguous()

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a 2-D tensor in its stored dtype."""
        return self.read(name)[start:stop]


def _to_peft_name(name: str) -> str:
    module, _, part = name.rpartition(".")
    parts = _TABLE_PARTS if module.rpartition(".")[2] in _TABLES else _PARTS
    return f"{_PREFIX}{module}.{parts[part]}" if part in parts else f"{_PREFIX}{name}"


def _transpose_info(info: TensorInfo, name: str) -> TensorInfo:
    part = name.rpartition(".")[2]
    if part == "m":
        raise UnsupportedAdapter(
            f"{name[:200]} is a magnitude of mlx-lm's DoRA; from mlx-lm, plain LoRA is read.",
            hint="Train with --fine-tune-type lora.",
        )
    if part in _PARTS and len(info.shape) != 2:
        raise UnsupportedAdapter(
            f"{name[:200]} has {len(info.shape)} dimensions, as LoRA on mlx-lm's stacked experts has; that "
            "is not carried."
        )
    return TensorInfo(info.dtype, info.shape[::-1])


def _make_malformed_error(problem: str) -> MalformedAdapter:
    separator = " " if problem.startswith("has ") else ": "
    return MalformedAdapter(f"{CONFIG_FILE} of mlx-lm{separator}{problem}.", pointer=CONFIG_FILE)
