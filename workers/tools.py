"""What a run works with, made from a deployment's settings."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from core.settings import Settings
from workers.cache.factors import FactorCache
from workers.device import pick_device
from workers.hub.factory import make_hub
from workers.hub.port import HubPort


@dataclass(frozen=True, slots=True)
class Tools:
    """The hub, the factor cache and the device."""

    hub: HubPort
    cache: FactorCache
    device: torch.device


def make_tools(settings: Settings) -> Tools:
    """The deployment's own tools. Raises RequestInvalid when it demands a device that is not there."""
    cache = FactorCache(
        settings.resolved_cache_dir,
        settings.cache_max_bytes,
        settings.redis_url.get_secret_value() if settings.redis_url else None,
        settings.redis_cache_ttl_s,
        settings.redis_cache_max_entry_bytes,
    )
    return Tools(hub=make_hub(settings), cache=cache, device=pick_device(settings.device))
