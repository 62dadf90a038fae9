"""Parses PEFT's `adapter_config.json`: keeps what determines the update, rejects what is unsupported."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Literal

import regex  # type: ignore[import-untyped]

from rebase.errors import MalformedAdapter, UnsupportedAdapter

_MATCH_TIMEOUT_S = 0.2  # match timeout; ordinary patterns take microseconds
_MAX_PATTERN_LENGTH = 4096


def matches_whole(pattern: str, name: str) -> bool:
    """Whether the pattern matches the whole name: PEFT's rule for `target_modules` given as a string."""
    return _match_in_time(pattern, name)


def matches_suffix(pattern: str, name: str) -> bool:
    """Whether the pattern matches the name or a dotted suffix: PEFT's rule for rank and alpha patterns."""
    return _match_in_time(rf"(.*\.)?({pattern})$", name)


def _match_in_time(pattern: str, name: str) -> bool:
    if len(pattern) > _MAX_PATTERN_LENGTH:
        raise MalformedAdapter(
            f"adapter_config.json: a pattern is longer than {_MAX_PATTERN_LENGTH} characters."
        )
    try:
        return _compile(pattern).fullmatch(name, timeout=_MATCH_TIMEOUT_S) is not None
    except (regex.error, TimeoutError, RecursionError) as exc:
        raise MalformedAdapter(
            f"adapter_config.json: the pattern {pattern[:80]!r} cannot be evaluated.",
            hint="List the modules by name instead.",
        ) from exc


@lru_cache(maxsize=16384)  # some adapters have one pattern per module, and each module is tested against all
def _compile(pattern: str) -> Any:
    return regex.compile(pattern)


CONFIG_FILE = "adapter_config.json"
MAX_PATTERNS = 10_000  # one per module of the deepest models; each is tested against every module
MAX_RANK = 4096  # larger than the width of most models and the rank of any published adapter

TASK_TYPES = (
    "CAUSAL_LM",
    "SEQ_CLS",
    "TOKEN_CLS",
    "QUESTION_ANS",
    "FEATURE_EXTRACTION",
    "SEQ_2_SEQ_LM",
)
# Keys that PEFT, Unsloth and Axolotl write beside LoraConfig's fields; none changes what A and B mean.
_WRITTEN_KEYS = frozenset(
    {"peft_type", "auto_mapping", "peft_version", "megatron_config", "megatron_core", "enable_lora"}
    | {"merge_weights", "unsloth_fixed", "unsloth_version"}
)

_NO_METHOD_HINT = (
    "Of the methods only `distill` could transfer it, and so far it reads adapters that change weights. "
    "Train the adapter on the new base."
)

# LoRA variants whose update is not s·B·A on the original base; PEFT sets each key only when it is in use.
_UNSUPPORTED_VARIANTS = (
    "layer_replication",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "alora_invocation_tokens",
)
# Initialisations that modify the base weights, so A and B are relative to an unpublished base.
# PiSSA and OLoRA take a part away that follows from the base alone; these depend on data or on rounding.
_BASE_CHANGING_INITS = ("corda", "loftq", "lora_ga")


# PEFT types whose effect is a change of linear weights, which PEFT itself computes.
EXPANDED_TYPES = frozenset(
    {"ADALORA", "LOHA", "LOKR", "VERA", "IA3", "OFT", "BOFT", "HRA", "FOURIERFT", "SHIRA", "VBLORA"}
    | {"ROAD", "MISS", "C3A", "DELORA", "WAVEFT"}
)


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The fields of a PEFT config that determine its update. Patterns match the adapter's module names.

    `rank`: 0 for types without one. `initial_update`: the adapter is relative to a base from which PEFT took
    this update away (PiSSA, OLoRA).
    """

    peft_type: str
    initial_update: Literal["pissa", "olora"] | None
    rank: int
    alpha: float
    rslora: bool
    dora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: tuple[str, ...] | str | None
    target_parameters: tuple[str, ...]
    layers_to_transform: tuple[int, ...] | None
    layers_pattern: tuple[str, ...]
    fan_in_fan_out: bool
    bias: str
    modules_to_save: tuple[str, ...]
    token_indices: Mapping[str, tuple[int, ...]]  # module → trained tokens; "" is the input embedding
    ensure_weight_tying: bool  # input and output tables were trained as one (`ensure_weight_tying`)
    base_model: str | None
    revision: str | None
    task_type: str | None  # PEFT's TaskType, such as CAUSAL_LM or SEQ_CLS
    unknown_options: tuple[str, ...]  # switched-on keys that the installed PEFT does not know

    @classmethod
    def parse(cls, raw: Any) -> AdapterConfig:
        """Validate a parsed JSON document.

        Raises MalformedAdapter for invalid values, UnsupportedAdapter for adapter types we cannot transfer.
        """
        if not isinstance(raw, Mapping):
            raise _make_malformed_error("is not a JSON object")
        _reject_unsupported_types(raw)
        peft_type = str(raw["peft_type"]).upper()
        if "r" not in raw and peft_type == "LORA":
            raise _make_malformed_error("has no rank (`r`)")
        modules = raw.get("target_modules")
        layers = raw.get("layers_to_transform")
        alpha = _parse_alpha(raw.get("lora_alpha", 8), "lora_alpha")  # 8 is PEFT's own default
        alpha_pattern = {
            key: _parse_alpha(value, f"alpha_pattern of {key}")
            for key, value in (_read_items(raw, "alpha_pattern") if peft_type == "LORA" else ())
        }
        if peft_type == "LORA":
            _require_an_effect((alpha, *alpha_pattern.values()))
        return cls(
            peft_type=peft_type,
            initial_update=_parse_initial_update(raw),
            rank=_parse_rank(raw["r"], "r") if peft_type == "LORA" else 0,
            alpha=alpha,
            rslora=_read_flag(raw, "use_rslora"),
            dora=_read_flag(raw, "use_dora"),
            rank_pattern={
                key: _parse_rank(value, f"rank_pattern of {key}")
                for key, value in (_read_items(raw, "rank_pattern") if peft_type == "LORA" else ())
            },
            alpha_pattern=alpha_pattern,
            target_modules=modules
            if isinstance(modules, str)
            else _read_names(raw, "target_modules") or None,
            target_parameters=_read_names(raw, "target_parameters"),
            layers_to_transform=_parse_layers(layers),
            layers_pattern=_read_names(raw, "layers_pattern"),
            fan_in_fan_out=_read_flag(raw, "fan_in_fan_out"),
            bias=_parse_bias(raw.get("bias")),
            modules_to_save=_read_names(raw, "modules_to_save"),
            token_indices=_parse_token_indices(raw.get("trainable_token_indices")),
            ensure_weight_tying=_read_flag(raw, "ensure_weight_tying"),
            base_model=_read_text(raw, "base_model_name_or_path"),
            revision=_read_text(raw, "revision"),
            task_type=_parse_task_type(raw),
            unknown_options=_find_unknown_options(raw),
        )

    def get_rank(self, module: str) -> int:
        """The rank of one module; patterns apply in file order, as in PEFT."""
        return next(
            (rank for key, rank in self.rank_pattern.items() if matches_suffix(key, module)), self.rank
        )

    def compute_scale(self, module: str) -> float:
        """s = α/r, or α/√r with rsLoRA, after applying rank and alpha patterns."""
        rank = self.get_rank(module)
        alpha = next(
            (value for key, value in self.alpha_pattern.items() if matches_suffix(key, module)), self.alpha
        )
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def targets_module(self, module: str, layer: int) -> bool:
        """Whether PEFT would adapt this module; it ignores tensors of other modules."""
        if self.target_modules is None:
            return True
        if isinstance(self.target_modules, str):
            if self.target_modules.lower() == "all-linear":
                return True
            return matches_whole(self.target_modules, module)
        if module in self.target_modules:
            return True
        matches_name = any(module.endswith(f".{name}") for name in self.target_modules)
        return matches_name and self._is_in_layers(module, layer)

    def _is_in_layers(self, module: str, layer: int) -> bool:
        if not self.layers_to_transform:
            return True
        matches_pattern = not self.layers_pattern or any(
            f".{name}.{layer}." in f".{module}" for name in self.layers_pattern
        )
        return matches_pattern and layer in self.layers_to_transform


def _reject_unsupported_types(raw: Mapping[str, Any]) -> None:
    peft_type = raw.get("peft_type")
    if not isinstance(peft_type, str):
        raise _make_malformed_error("has no peft_type")
    if peft_type.upper() not in {"LORA", *EXPANDED_TYPES}:
        raise UnsupportedAdapter(
            f"Adapters of PEFT type {peft_type[:40]} are not a fixed change of linear weights, so they "
            "cannot be written as a LoRA.",
            hint=_NO_METHOD_HINT,
            pointer=CONFIG_FILE,
        )
    for key in _UNSUPPORTED_VARIANTS:
        if raw.get(key):
            raise UnsupportedAdapter(
                f"This LoRA uses `{key}`, which is not supported.", hint=_NO_METHOD_HINT, pointer=CONFIG_FILE
            )
    init_name = raw.get("init_lora_weights")
    if isinstance(init_name, str) and init_name.lower().startswith(_BASE_CHANGING_INITS):
        raise UnsupportedAdapter(
            f"This LoRA was initialised with {init_name[:40]!r}, which also changes the base weights.",
            hint=(
                "Save it again with PEFT's `path_initial_model_for_weight_conversion`, which turns it into "
                "a plain LoRA on the published base."
            ),
            pointer=CONFIG_FILE,
        )


def _parse_rank(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _make_malformed_error(f"{name} should be an integer")
    if not 1 <= value <= MAX_RANK:
        raise _make_malformed_error(f"{name} is {value}; it must be between 1 and {MAX_RANK}")
    return value


def _parse_alpha(value: Any, name: str) -> float:
    """Any finite number; a negative one subtracts the update, as it does in PEFT."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e9 < value < 1e9:
        raise _make_malformed_error(f"{name} should be a number between -1e9 and 1e9")
    return float(value)


def _require_an_effect(alphas: Iterable[float]) -> None:
    """Raises MalformedAdapter if every alpha is zero, which switches the whole adapter off."""
    if not any(alphas):
        raise MalformedAdapter(
            f"{CONFIG_FILE}: lora_alpha is 0, so the adapter does nothing: its update is scaled by it.",
            hint="Set lora_alpha to the value that the adapter was trained with.",
            pointer=CONFIG_FILE,
        )


def _read_items(raw: Mapping[str, Any], key: str) -> Sequence[tuple[str, Any]]:
    value = raw.get(key) or {}
    if not isinstance(value, Mapping):
        raise _make_malformed_error(f"{key} should be an object")
    if len(value) > MAX_PATTERNS:
        raise _make_malformed_error(f"{key} has {len(value)} entries; at most {MAX_PATTERNS} are read")
    return tuple(value.items())


def _read_names(raw: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = raw.get(key) or ()
    value = (value,) if isinstance(value, str) else value
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise _make_malformed_error(f"{key} should be a list of names")
    return tuple(value)


def _parse_token_indices(value: Any) -> dict[str, tuple[int, ...]]:
    by_module = value if isinstance(value, Mapping) else {"": value}
    indices = {str(module): _parse_token_ids(ids) for module, ids in by_module.items() if ids}
    if len(indices) > MAX_PATTERNS:
        raise _make_malformed_error(f"trainable_token_indices has {len(indices)} modules")
    return indices


def _parse_token_ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or any(
        isinstance(id_, bool) or not isinstance(id_, int) or not 0 <= id_ < 2**31 for id_ in value
    ):
        raise _make_malformed_error("trainable_token_indices should contain lists of token ids")
    return tuple(value)


def _parse_layers(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    layers = [value] if isinstance(value, int) else value
    if not isinstance(layers, list) or any(
        isinstance(layer, bool) or not isinstance(layer, int) for layer in layers
    ):
        raise _make_malformed_error("layers_to_transform should be a list of layer numbers")
    return tuple(layers)


def _read_flag(raw: Mapping[str, Any], key: str) -> bool:
    value = raw.get(key) or False
    if not isinstance(value, bool):
        raise _make_malformed_error(f"{key} should be true or false")
    return value


def _parse_bias(value: Any) -> str:
    bias = "none" if value is None else value
    if bias not in ("none", "all", "lora_only"):
        raise _make_malformed_error("bias should be none, all or lora_only")
    return str(bias)


def _parse_initial_update(raw: Mapping[str, Any]) -> Literal["pissa", "olora"] | None:
    name = raw.get("init_lora_weights")
    if not isinstance(name, str):
        return None
    return "pissa" if name.lower().startswith("pissa") else "olora" if name.lower() == "olora" else None


def _parse_task_type(raw: Mapping[str, Any]) -> str | None:
    value = _read_text(raw, "task_type")
    if value is not None and value not in TASK_TYPES:
        raise _make_malformed_error(f"task_type is {value[:40]!r}; PEFT knows {', '.join(TASK_TYPES)}")
    return value


def _find_unknown_options(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys of a newer or modified PEFT that are switched on, so that they may change what A and B mean."""
    # Here, because reading a config should not import PEFT otherwise.
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    config_class: Any = PEFT_TYPE_TO_CONFIG_MAPPING[str(raw["peft_type"]).upper()]  # type: ignore[index]
    known = {field.name for field in fields(config_class)} | _WRITTEN_KEYS
    return tuple(sorted(str(key)[:80] for key, value in raw.items() if key not in known and value))


def _read_text(raw: Mapping[str, Any], key: str) -> str | None:
    value = raw.get(key)
    if value is not None and not isinstance(value, str):
        raise _make_malformed_error(f"{key} should be a string")
    return value or None


def _make_malformed_error(problem: str) -> MalformedAdapter:
    separator = " " if problem.startswith(("is ", "has ")) else ": "
    return MalformedAdapter(f"{CONFIG_FILE}{separator}{problem[:200]}.", pointer=CONFIG_FILE)
