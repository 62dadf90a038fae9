"""What a run works with, made from a deployment's settings."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from rebase.settings import Settings
from workers.cache.factors import FactorCache
from workers.device import pick_device
from workers.hub.factory import make_hub
from workers.hub.port import Hub


@dataclass(frozen=True, slots=True)
class Runtime:
    """The hub, the factor cache and the device.

    `activation_bytes`: sums over activations that are held at a time. `model_bytes`: what running models may
    take; None: most of what is free. `scratch`: where a run may leave rows while it works. `tasks_dir`: tasks
    for evaluations beside those of the harness.
    """

    hub: Hub
    cache: FactorCache
    device: torch.device
    activation_bytes: int = 4 * 2**30
    model_bytes: int | None = None
    scratch_dir: Path = Path(tempfile.gettempdir())
    tasks_dir: Path | None = None


def make_runtime(settings: Settings) -> Runtime:
    """The deployment's own tools. Raises RequestInvalid when it demands a device that is not there."""
    cache = FactorCache(
        settings.resolved_cache_dir,
        settings.cache_max_bytes,
        settings.redis_url.get_secret_value() if settings.redis_url else None,
        settings.redis_cache_ttl_s,
        settings.redis_cache_max_entry_bytes,
    )
    return Runtime(
        hub=make_hub(settings),
        cache=cache,
        device=pick_device(settings.device),
        activation_bytes=settings.activation_bytes,
        model_bytes=settings.model_bytes,
        scratch_dir=settings.resolved_work_dir,
        tasks_dir=settings.tasks_dir,
    )
