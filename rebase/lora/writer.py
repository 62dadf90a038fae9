"""Lays out an adapter that every common loader interprets the same way.

The scale is folded into B, all modules share one rank (zero-padded) and `lora_alpha = r`, so a loader applies
a factor of 1 whether it reads global or per-module values and whether or not it supports rsLoRA or patterns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rebase.errors import VerificationFailed
from rebase.lora.linalg import frobenius, truncate
from rebase.lora.low_rank import LowRank, Site

if TYPE_CHECKING:
    from rebase.models.architecture import Architecture
    from rebase.models.weights import ModelWeights


def fuse_sites(architecture: Architecture, sites: Sequence[Site], blocks: Mapping[Site, LowRank]) -> LowRank:
    """Stack the updates of a module's `sites` into its rows: A concatenated, B block by block, zeros for
    absent sites.

    Lossless. The rank is the sum of the blocks' ranks, except that roles with an identical A (a fused adapter
    transferred unchanged) keep sharing it. Without any block the result has rank 0.
    """
    if len(sites) == 1 and blocks:
        return blocks[sites[0]]
    o, i = architecture.module_shape(sites[0].layer, architecture.get_submodule_name(sites[0]))
    A_parts: list[torch.Tensor] = []
    B_parts: list[torch.Tensor] = []
    for site in sites:
        if site not in blocks:
            continue
        block = blocks[site]
        index = next((k for k, A in enumerate(A_parts) if torch.equal(A, block.A)), None)
        if index is None:
            index = len(A_parts)
            A_parts.append(block.A)
            B_parts.append(torch.zeros(o, block.rank, dtype=block.B.dtype))
        B_parts[index][architecture.get_output_rows(site)] = block.B
    if not A_parts:
        return LowRank(torch.zeros(o, 0), torch.zeros(0, i))
    return LowRank(torch.cat(B_parts, 1), torch.cat(A_parts, 0))


DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True, slots=True)
class BuiltAdapter:
    """Contents of `adapter_model.safetensors` and `adapter_config.json`, with per-site write losses.

    Measurements: `written_norm` = ‖ΔW‖_F as stored; `written_error` = relative Frobenius distance from that
    to the requested update (rounding plus truncation); `truncation_lost_energy` where `max_rank` truncated.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    rank: int
    measurements: dict[Site, dict[str, float]]

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules of the target that have a LoRA."""
        return tuple(
            name.removeprefix(PREFIX).removesuffix(LORA_A) for name in self.tensors if name.endswith(LORA_A)
        )

    def adapts(self, module: str) -> bool:
        """Does this module of the target have a LoRA?"""
        return f"{PREFIX}{module}{LORA_A}" in self.tensors


PREFIX, LORA_A, LORA_B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


def build_adapter(
    target: ModelWeights,
    deltas: Mapping[Site, LowRank],
    *,
    dtype: str,
    max_rank: int | None,
    base_model: str,
    revision: str | None,
) -> BuiltAdapter:
    """Lay out updates as a LoRA on the target.

    dtype: float32, float16 or bfloat16. max_rank: modules of higher rank are truncated exactly. A module with
    updates in only some layers gets zeros in the others, so that `target_modules` means the same to every
    loader. Raises VerificationFailed if an update has the wrong shape, is not finite, or overflows the dtype.
    """
    deltas = {site: LowRank(delta.B.float().cpu(), delta.A.float().cpu()) for site, delta in deltas.items()}
    _check_sites(target, deltas)
    modules = _fuse_modules(target, deltas)
    measurements: dict[Site, dict[str, float]] = {site: {} for site in sorted(deltas)}
    for name, (sites, update) in modules.items():
        max_module_rank = min(update.shape) if max_rank is None else min(max_rank, *update.shape)
        if update.rank > max_module_rank:
            truncated, _ = truncate(update, max_module_rank)
            modules[name] = (sites, truncated)
            if max_rank is not None:
                for site in sites:
                    lost = _compute_relative_distance(deltas[site], _slice_site(target, site, truncated)) ** 2
                    measurements[site]["truncation_lost_energy"] = lost
    rank = max(1, *(update.rank for _, update in modules.values()))
    tensors: dict[str, Tensor] = {}
    for name, (sites, update) in modules.items():
        stored = cast_update(name, update, dtype)
        for site in sites:
            measurements[site] |= _measure_storage_error(
                site, deltas[site], _slice_site(target, site, stored), dtype
            )
        pad = rank - update.rank
        tensors[f"{PREFIX}{name}{LORA_A}"] = torch.nn.functional.pad(stored.A, (0, 0, 0, pad)).contiguous()
        tensors[f"{PREFIX}{name}{LORA_B}"] = torch.nn.functional.pad(stored.B, (0, pad)).contiguous()
    config = _build_config(target, tuple(modules), rank, base_model, revision)
    return BuiltAdapter(dict(sorted(tensors.items())), config, rank, measurements)


def make_overflow_error(name: str, dtype: str) -> VerificationFailed:
    return VerificationFailed(
        f"{name[:1].upper()}{name[1:]} does not fit into {dtype}: some values overflow.",
        hint="Set output.dtype to bfloat16 or float32.",
        pointer="/output/dtype",
    )


def _check_sites(target: ModelWeights, deltas: Mapping[Site, LowRank]) -> None:
    if not deltas:
        raise VerificationFailed("There is no update to write.")
    for site, delta in deltas.items():
        if not target.has_site(site) or delta.shape != target.shape(site):
            raise VerificationFailed(
                f"The update of site {site} has shape {delta.shape}, which differs from the target's."
            )
        if not bool(torch.isfinite(delta.B).all() and torch.isfinite(delta.A).all()):
            raise VerificationFailed(f"The update of site {site} contains NaN or Inf.")


def _fuse_modules(
    target: ModelWeights, deltas: Mapping[Site, LowRank]
) -> dict[str, tuple[tuple[Site, ...], LowRank]]:
    """Module name → its updated sites and its update; zeros in layers where a used module has no update."""
    arch = target.architecture
    used_roles = {site.role for site in deltas}
    modules: dict[str, tuple[tuple[Site, ...], LowRank]] = {}
    for layer in range(target.layers):
        for roles in arch.get_layout(layer).values():
            if used_roles.isdisjoint(roles):
                continue
            sites = tuple(Site(layer, role) for role in roles)
            blocks = {site: deltas[site] for site in sites if site in deltas}
            modules[arch.get_module_name(sites[0])] = (tuple(blocks), fuse_sites(arch, sites, blocks))
    return modules


def _slice_site(target: ModelWeights, site: Site, fused: LowRank) -> LowRank:
    rows = target.architecture.get_output_rows(site)
    B = fused.B if rows is None else fused.B[rows]
    return LowRank(B.float(), fused.A.float())


def cast_update(name: str, update: LowRank, dtype: str) -> LowRank:
    stored = LowRank(update.B.to(DTYPES[dtype]), update.A.to(DTYPES[dtype]))
    if not bool(torch.isfinite(stored.B).all() and torch.isfinite(stored.A).all()):
        raise make_overflow_error(f"the update of {name}", dtype)
    return stored


def _measure_storage_error(site: Site, requested: LowRank, stored: LowRank, dtype: str) -> dict[str, float]:
    norm = frobenius(stored)
    if norm == 0.0 and frobenius(requested) > 0.0:
        raise VerificationFailed(
            f"The update of site {site} becomes zero when stored as {dtype} at this rank.",
            hint="Set output.dtype to float32, or raise output.max_rank.",
            pointer="/output/dtype",
        )
    return {"written_norm": norm, "written_error": _compute_relative_distance(requested, stored)}


def _compute_relative_distance(requested: LowRank, stored: LowRank) -> float:
    """‖wanted − stored‖_F / ‖wanted‖_F, 0 for a zero update."""
    size = frobenius(requested)
    if size == 0.0:
        return 0.0
    difference = LowRank(torch.cat([requested.B, -stored.B], 1), torch.cat([requested.A, stored.A], 0))
    return frobenius(difference) / size


def _build_config(
    target: ModelWeights, modules: tuple[str, ...], rank: int, base_model: str, revision: str | None
) -> dict[str, Any]:
    """Only keys that PEFT has had since early 2024; omitted keys equal the default in every version."""
    return {
        "alpha_pattern": {},
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": target.architecture.family.transposed,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "revision": revision,
        "target_modules": _build_target_modules(target, modules),
        "task_type": "CAUSAL_LM",
        "use_rslora": False,
    }


def _build_target_modules(target: ModelWeights, modules: tuple[str, ...]) -> list[str]:
    """Suffixes that match exactly these modules: `q_proj`, or `attn.c_proj` if `mlp.c_proj` is not adapted.

    In a larger model (Gemma 3 with vision) other towers use the same suffixes, so full names are listed.
    """
    arch = target.architecture
    if arch.found is not None:
        return _find_suffixes(frozenset(modules), arch.found.module_names)
    if arch.root != arch.family.root:
        return sorted(modules)
    first_layer_prefix = f"{arch.root}{arch.get_layer_name(0)}."
    used = {name.removeprefix(first_layer_prefix) for name in modules if name.startswith(first_layer_prefix)}
    other_leaves = {part.rpartition(".")[2] for part in arch.family.layout if part not in used}
    short = ((part, part.rpartition(".")[2]) for part in used)
    return sorted({part if leaf in other_leaves else leaf for part, leaf in short})


def _find_suffixes(modules: frozenset[str], all_modules: Iterable[str]) -> list[str]:
    """The shortest endings of one or two parts that match exactly these modules of the model; full names
    where another module ends alike."""
    others = [f".{name}" for name in all_modules if name not in modules]
    for parts in (1, 2):
        suffixes = {".".join(name.split(".")[-parts:]) for name in modules}
        if not any(name.endswith(f".{suffix}") for name in others for suffix in suffixes):
            return sorted(suffixes)
    return sorted(modules)
