"""Which source site feeds which target site: a monotone layer map, and roles matched by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from transfer.errors import IncompatiblePair
from transfer.interface import Site, SitePair
from transfer.weights import ModelWeights


@dataclass(frozen=True, slots=True)
class Pairing:
    """Paired sites in target order, and what found no partner.

    `layers`: target layer → source layer. `unused_source_layers`: adapted layers that feed no target layer.
    `dropped`: source sites without a place in the target (unused layer, or a role that the target lacks).
    """

    pairs: tuple[SitePair, ...]
    layers: tuple[int, ...]
    unused_source_layers: tuple[int, ...]
    dropped: tuple[Site, ...]


def narrowed(pairing: Pairing, pairs: tuple[SitePair, ...]) -> Pairing:
    """The same with only these of its pairs; source sites that feed nothing any more count as dropped."""
    lost = {pair.source for pair in pairing.pairs} - {pair.source for pair in pairs}
    return replace(pairing, pairs=pairs, dropped=tuple(sorted({*pairing.dropped, *lost})))


def layer_map(source_layers: int, target_layers: int) -> tuple[int, ...]:
    """Target layer → source layer, proportional: the source layer in which the target layer's centre falls.

    Monotone, the identity at equal depth, with multiplicities that differ by at most one. Integer arithmetic,
    so that no rounding mode decides.
    """
    return tuple((2 * t + 1) * source_layers // (2 * target_layers) for t in range(target_layers))


@dataclass(frozen=True, slots=True)
class Layers:
    """`nearest`: target layer → source layer. `homes`: source layer → target layer. Both rise."""

    nearest: tuple[int, ...]
    homes: tuple[int, ...]


def proportional(source_layers: int, target_layers: int) -> Layers:
    """Both ways by relative depth alone."""
    return Layers(layer_map(source_layers, target_layers), layer_map(target_layers, source_layers))


def pair_sites(
    source: ModelWeights,
    target: ModelWeights,
    adapter_sites: Iterable[Site],
    layer_scale: bool,
    *,
    fold: bool = False,
    layers: Layers | None = None,
) -> Pairing:
    """Match every adapted source site to the target sites that take its update; by relative depth unless
    `layers` are given.

    With `layer_scale` an update is divided by the number of target layers that share its source layer, so
    that their sum keeps its size. With `fold`, where the source is deeper, every source layer goes to its
    home: target sites then take several updates, whose pairs stand side by side. Raises IncompatiblePair when
    nothing is left to carry.
    """
    adapted = sorted(known := set(adapter_sites))
    ways = layers or proportional(source.layers, target.layers)
    folded = fold and source.layers > target.layers
    feeding = [[s for s, home in enumerate(ways.homes) if home == t] for t in range(target.layers)]
    if not folded:
        feeding = [[layer] for layer in ways.nearest]
    shared_by = Counter(layer for some in feeding for layer in some)
    pairs = tuple(
        SitePair(
            source=site,
            target=place,
            source_shape=source.shape(site),
            target_shape=target.shape(place),
            scale=1 / shared_by[site.layer] if layer_scale else 1.0,
        )
        for place in target.sites
        for layer in feeding[place.layer]
        if (site := Site(layer, place.role)) in known
    )
    fed = {pair.source for pair in pairs}
    if not pairs:
        changed = ", ".join(sorted({site.role.value for site in adapted})) or "nothing"
        present = ", ".join(role.value for role in target.architecture.roles)
        raise IncompatiblePair(
            "No adapted module of the source has a counterpart in the target.",
            hint=f"The adapter changes {changed}; {target.architecture.model_type} has {present}.",
        )
    return Pairing(
        pairs=pairs,
        layers=ways.nearest,
        unused_source_layers=tuple(sorted({site.layer for site in adapted} - set(shared_by))),
        dropped=tuple(site for site in adapted if site not in fed),
    )
