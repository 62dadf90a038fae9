"""Classifies an adapter's tensors by their PEFT names, before any tensor is read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate

from rebase.errors import MalformedAdapter, UnsupportedAdapter

# `base_model.model.<module>.lora_A[.<adapter>].weight`; raw training checkpoints include the adapter name.
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(\.[^.]+)?\.weight")
_MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(\.[^.]+){0,2}")
_EMBEDDING_LORA = re.compile(r"(?P<module>.+)\.lora_embedding_[AB](\.[^.]+)?")
_TOKENS = re.compile(r"(?P<module>.+?)(\.token_adapter)?\.trainable_tokens_delta(\.[^.]+)?")
_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save(\.[^.]+)*")
_SAVED_MATRIX = re.compile(r"(?P<module>.+?)(\.modules_to_save(\.[^.]+)?)?\.weight")
# Copies of base weights inside PEFT's wrappers; written when PEFT saves the embedding layers.
_BASE_COPY = re.compile(r"(?P<module>.+?)\.((token_adapter\.)?base_layer|original_module)\.[^.]+")
_VOCABULARY_MODULES = frozenset({"embed_tokens", "lm_head", "wte", "embed_in", "embed_out"})


@dataclass(slots=True)
class ModuleTensors:
    """Tensor names of one adapted module."""

    A: str | None = None
    B: str | None = None
    magnitude: str | None = None


@dataclass(slots=True)
class TensorGroups:
    """An adapter's tensors grouped by kind, by name alone."""

    modules: dict[str, ModuleTensors] = field(default_factory=dict)
    token_rows: dict[str, str] = field(default_factory=dict)  # module → tensor with the rows of single tokens
    tables: dict[str, str] = field(default_factory=dict)  # embedding or output head → its whole matrix
    not_carried: dict[str, str] = field(default_factory=dict)  # module → how it was trained
    unknown: list[str] = field(default_factory=list)  # tensor names of no known kind


def group_tensor_names(names: Iterable[str], modules_to_save: Iterable[str]) -> TensorGroups:
    """Group tensor names by module.

    Raises UnsupportedAdapter for trained biases and for LoRA on the output head or on experts,
    MalformedAdapter when a module has two tensors of one kind (two adapters in one file).
    """
    groups, saved_modules = TensorGroups(), tuple(modules_to_save)
    for name in sorted(names):
        bare = name.removeprefix("base_model.model.")
        if match := _LORA.fullmatch(bare):
            _reject_unsupported_module(match["module"])
            _add_tensor(groups, match["module"], match["part"], name)
        elif match := _MAGNITUDE.fullmatch(bare):
            _add_tensor(groups, match["module"], "magnitude", name)
        elif match := _EMBEDDING_LORA.fullmatch(bare):
            groups.not_carried[match["module"]] = "LoRA on the embedding"
        elif match := _TOKENS.fullmatch(bare):
            groups.token_rows[match["module"]] = name
        elif (match := _BASE_COPY.fullmatch(bare)) and _is_fully_trained(match["module"], saved_modules):
            continue
        elif (match := _SAVED_MATRIX.fullmatch(bare)) and is_embedding_table(match["module"]):
            groups.tables[match["module"]] = name  # `x.weight` sorts last, and is what PEFT loads
        elif match := _SAVED.fullmatch(bare):
            groups.not_carried[match["module"]] = "fully trained module"
        elif (module := _find_saved_module(bare, saved_modules)) is not None:
            groups.not_carried[module] = "fully trained module"
        elif bare.endswith(".bias"):
            raise UnsupportedAdapter(
                f"The adapter trained the bias {bare[:200]}; trained biases are not supported.",
                hint='Train with bias="none".',
            )
        else:
            groups.unknown.append(name)
    return groups


def is_embedding_table(module: str) -> bool:
    """Whether each row of this module's weight belongs to a token."""
    return module.rpartition(".")[2] in _VOCABULARY_MODULES


def _find_saved_module(bare: str, saved_modules: tuple[str, ...]) -> str | None:
    """The module of a fully saved tensor if it is in `modules_to_save` or inside one of them."""
    module = bare.rpartition(".")[0]
    return module if _is_fully_trained(module, saved_modules) else None


def _is_fully_trained(module: str, saved_modules: tuple[str, ...]) -> bool:
    """Whether it is a token table or part of a module in `modules_to_save`; PEFT compares name suffixes."""
    ancestors = accumulate(module.split("."), "{}.{}".format)
    return is_embedding_table(module) or any(ancestor.endswith(saved_modules) for ancestor in ancestors)


def _add_tensor(groups: TensorGroups, module: str, part: str, name: str) -> None:
    tensors = groups.modules.setdefault(module, ModuleTensors())
    existing = getattr(tensors, part)
    if existing is not None:
        raise MalformedAdapter(
            f"Two tensors are the LoRA {part} of the same module: {existing[:200]} and {name[:200]}.",
            hint="A file must contain a single adapter.",
        )
    setattr(tensors, part, name)


def _reject_unsupported_module(module: str) -> None:
    parts = module.split(".")
    if is_embedding_table(module):
        raise UnsupportedAdapter(
            f"The adapter has LoRA on {module[:200]}, whose rows belong to tokens; this is not supported.",
            hint="Train without the embedding and the output head among the target modules.",
        )
    if any("expert" in part for part in parts) or parts[-2:] == ["mlp", "gate"] or "router" in parts:
        raise UnsupportedAdapter(
            f"The adapter has LoRA on {module[:200]}; mixture-of-experts modules are not supported yet."
        )
