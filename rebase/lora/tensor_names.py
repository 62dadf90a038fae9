"""Classifies an adapter's tensors by their PEFT names, before any tensor is read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate

from rebase.errors import MalformedAdapter, UnsupportedAdapter

# `base_model.model.<module>.lora_A[.<adapter>].weight`; raw training checkpoints include the adapter's name,
# which may itself contain dots.
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(\.[^.]+)*\.weight")
_MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(\.[^.]+)*")
_EMBEDDING_LORA = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<part>[AB])(\.[^.]+)*")
_LAYER_NORM = re.compile(r"(?P<module>.+)\.ln_tuning_layers(\.[^.]+)*\.(?P<parameter>weight|bias)")
_TOKENS = re.compile(r"(?P<module>.+?)(\.token_adapter)?\.trainable_tokens_delta(\.[^.]+)?")
_PARAMETER = re.compile(
    r"(?P<module>.+?)(\.base_layer|\.modules_to_save(\.[^.]+)*?)?\.(?P<parameter>weight|bias)"
)
# Copies of base weights inside PEFT's wrappers; written when PEFT saves the embedding layers.
_BASE_COPY = re.compile(r"(?P<module>.+?)\.((token_adapter\.)?base_layer|original_module)\.weight")
_ORIGINAL_COPY = re.compile(r".+\.original_module\.[^.]+")
_VOCABULARY_MODULES = frozenset(
    {"embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings", "unembed_tokens"}
)
# Segments that torch.compile, FSDP and activation checkpointing insert; DDP and PEFT itself add prefixes.
_WRAPPER_SEGMENTS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_WRAPPER_PREFIXES = ("base_model.model.", "module.")
# Buffers that some versions of transformers save; they are not trained.
_BUFFER = re.compile(r".*(rotary_emb\.(inv_freq|cos_cached|sin_cached)|attn\.(bias|masked_bias))")
_VALUE_HEAD = re.compile(r"(.+\.)?v_head\..+")
_RENAMED_LEAVES = {"unembed_tokens": "lm_head"}  # Tinker's name for the output head


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
    vocabulary_loras: dict[str, ModuleTensors] = field(default_factory=dict)  # LoRA on embedding or head
    token_rows: dict[str, str] = field(default_factory=dict)  # module → tensor with the rows of single tokens
    tables: dict[str, str] = field(default_factory=dict)  # embedding or output head → its whole matrix
    parameters: dict[str, str] = field(default_factory=dict)  # `module.weight` or `module.bias` → tensor
    value_heads: list[str] = field(default_factory=list)  # TRL's value heads
    unknown: list[str] = field(default_factory=list)  # tensor names of no known kind


def group_tensor_names(names: Iterable[str], modules_to_save: Iterable[str]) -> TensorGroups:
    """Group tensor names by module.

    Raises UnsupportedAdapter for LoRA on experts, MalformedAdapter when a module has two tensors of one kind
    (two adapters in one file).
    """
    groups, saved_modules = TensorGroups(), tuple(modules_to_save)
    for name in sorted(names):
        bare = strip_wrappers(name)
        if match := _LORA.fullmatch(bare):
            module = match["module"]
            if is_embedding_table(module):
                _add_tensor(groups.vocabulary_loras, module, match["part"], name)
            else:
                _reject_unsupported_module(module)
                _add_tensor(groups.modules, module, match["part"], name)
        elif match := _MAGNITUDE.fullmatch(bare):
            _add_tensor(_get_group(groups, match["module"]), match["module"], "magnitude", name)
        elif match := _EMBEDDING_LORA.fullmatch(bare):
            _add_tensor(groups.vocabulary_loras, match["module"], match["part"], name)
        elif match := _TOKENS.fullmatch(bare):
            groups.token_rows[match["module"]] = name
        elif not _is_untrained_copy(bare, saved_modules):
            _add_parameter(groups, bare, name)
    return groups


def _is_untrained_copy(bare: str, saved_modules: tuple[str, ...]) -> bool:
    """Is it a buffer, or a copy of a base weight inside one of PEFT's wrappers?"""
    if _BUFFER.fullmatch(bare) or _ORIGINAL_COPY.fullmatch(bare):
        return True
    match = _BASE_COPY.fullmatch(bare)
    return match is not None and _is_fully_trained(match["module"], saved_modules)


def _add_parameter(groups: TensorGroups, bare: str, name: str) -> None:
    match = _PARAMETER.fullmatch(bare)
    if _VALUE_HEAD.fullmatch(bare):
        groups.value_heads.append(bare)
    elif match is None or ".lora_" in bare:  # such as lora_B.bias, which parsing the config refuses first
        groups.unknown.append(name)
    elif is_embedding_table(match["module"]) and match["parameter"] == "weight":
        groups.tables[match["module"]] = name  # `x.weight` sorts last, and is what PEFT loads
    else:
        groups.parameters[f"{match['module']}.{match['parameter']}"] = name


def strip_wrappers(name: str) -> str:
    """The name without what PEFT, DDP, FSDP, torch.compile and activation checkpointing add to it, and with
    PEFT's usual name of the output head."""
    parts = [part for part in name.split(".") if part not in _WRAPPER_SEGMENTS]
    bare = ".".join(_RENAMED_LEAVES.get(part, part) for part in parts)
    while prefix := next((prefix for prefix in _WRAPPER_PREFIXES if bare.startswith(prefix)), None):
        bare = bare.removeprefix(prefix)
    return bare


def is_embedding_table(module: str) -> bool:
    """Whether each row of this module's weight belongs to a token."""
    return module.rpartition(".")[2] in _VOCABULARY_MODULES


def _is_fully_trained(module: str, saved_modules: tuple[str, ...]) -> bool:
    """Whether it is a token table or part of a module in `modules_to_save`; PEFT compares name suffixes."""
    ancestors = accumulate(module.split("."), "{}.{}".format)
    return is_embedding_table(module) or any(ancestor.endswith(saved_modules) for ancestor in ancestors)


def _get_group(groups: TensorGroups, module: str) -> dict[str, ModuleTensors]:
    return groups.vocabulary_loras if is_embedding_table(module) else groups.modules


def _add_tensor(modules: dict[str, ModuleTensors], module: str, part: str, name: str) -> None:
    tensors = modules.setdefault(module, ModuleTensors())
    existing = getattr(tensors, part)
    if existing is not None:
        raise MalformedAdapter(
            f"Two tensors are the LoRA {part} of the same module: {existing[:200]} and {name[:200]}.",
            hint="A file must contain a single adapter.",
        )
    setattr(tensors, part, name)


def _reject_unsupported_module(module: str) -> None:
    parts = module.split(".")
    if any("expert" in part for part in parts) or parts[-2:] == ["mlp", "gate"] or "router" in parts:
        raise UnsupportedAdapter(
            f"The adapter has LoRA on {module[:200]}; mixture-of-experts modules are not supported yet."
        )
