"""Pairs source sites with target sites: layers by a monotone map, roles by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from rebase.errors import IncompatiblePair
from rebase.lora.low_rank import Site
from rebase.methods.base import SitePair
from rebase.models.weights import ModelWeights


@dataclass(frozen=True, slots=True)
class Pairing:
    """Paired sites in target order, and the sites left unpaired.

    `layer_map`: target layer → source layer. `unused_source_layers`: adapted layers mapped to no target
    layer. `dropped`: source sites without a counterpart (unused layer, or a role that the target lacks).
    """

    pairs: tuple[SitePair, ...]
    layer_map: tuple[int, ...]
    unused_source_layers: tuple[int, ...]
    dropped: tuple[Site, ...]


def restrict_pairing(pairing: Pairing, pairs: tuple[SitePair, ...]) -> Pairing:
    """Keep only these pairs; source sites that are then unpaired count as dropped."""
    newly_dropped = {pair.source for pair in pairing.pairs} - {pair.source for pair in pairs}
    return replace(pairing, pairs=pairs, dropped=tuple(sorted({*pairing.dropped, *newly_dropped})))


def map_layers_proportionally(source_layers: int, target_layers: int) -> tuple[int, ...]:
    """Target layer → source layer, proportionally: the source layer that contains the target layer's centre.

    Monotone, the identity at equal depth, with multiplicities that differ by at most one. Integer arithmetic,
    so the result does not depend on rounding.
    """
    return tuple((2 * t + 1) * source_layers // (2 * target_layers) for t in range(target_layers))


@dataclass(frozen=True, slots=True)
class LayerMaps:
    """Layer maps in both directions, each non-decreasing."""

    target_to_source: tuple[int, ...]
    source_to_target: tuple[int, ...]


def build_proportional_maps(source_layers: int, target_layers: int) -> LayerMaps:
    """Layer maps in both directions by relative depth."""
    return LayerMaps(
        map_layers_proportionally(source_layers, target_layers),
        map_layers_proportionally(target_layers, source_layers),
    )


def pair_sites(
    source: ModelWeights,
    target: ModelWeights,
    adapter_sites: Iterable[Site],
    layer_scale: bool,
    *,
    fold: bool = False,
    layer_maps: LayerMaps | None = None,
) -> Pairing:
    """Pair every adapted source site with the target sites that receive its update; layers are matched by
    relative depth unless `layer_maps` is given.

    With `layer_scale`, an update is divided by the number of target layers that share its source layer, so
    their sum keeps its size. With `fold`, if the source is deeper, every source layer is used: a target site
    then receives several updates, as consecutive pairs. Raises IncompatiblePair if no site can be paired.
    """
    sorted_sites = sorted(adapted_sites := set(adapter_sites))
    maps = layer_maps or build_proportional_maps(source.layers, target.layers)
    folding = fold and source.layers > target.layers
    sources_by_target = [
        [s for s, target_layer in enumerate(maps.source_to_target) if target_layer == t]
        for t in range(target.layers)
    ]
    if not folding:
        sources_by_target = [[layer] for layer in maps.target_to_source]
    use_counts = Counter(layer for source_layers in sources_by_target for layer in source_layers)
    pairs = tuple(
        SitePair(
            source=site,
            target=target_site,
            source_shape=source.shape(site),
            target_shape=target.shape(target_site),
            scale=1 / use_counts[site.layer] if layer_scale else 1.0,
        )
        for target_site in target.sites
        for layer in sources_by_target[target_site.layer]
        if (site := Site(layer, target_site.role)) in adapted_sites
    )
    used_sources = {pair.source for pair in pairs}
    if not pairs:
        adapted_roles = ", ".join(sorted({site.role.value for site in sorted_sites})) or "nothing"
        available_roles = ", ".join(role.value for role in target.architecture.roles)
        raise IncompatiblePair(
            "No adapted module of the source has a counterpart in the target.",
            hint=(
                f"The adapter changes {adapted_roles}; {target.architecture.model_type} models have "
                f"{available_roles}."
            ),
        )
    return Pairing(
        pairs=pairs,
        layer_map=maps.target_to_source,
        unused_source_layers=tuple(sorted({site.layer for site in sorted_sites} - set(use_counts))),
        dropped=tuple(site for site in sorted_sites if site not in used_sources),
    )
