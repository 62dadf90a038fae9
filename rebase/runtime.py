"""The resources a conversion runs with (hub, cache, device), built from a deployment's settings."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError

from rebase.cache.factor_cache import FactorCache
from rebase.errors import DiskFull, RequestInvalid
from rebase.hub.base import Hub
from rebase.hub.local import LocalHub
from rebase.settings import Settings


def make_hub(settings: Settings) -> Hub:
    """The local hub folder if one is set, else the Hub at HF_ENDPOINT (https://huggingface.co by default).

    Downloads go to the Hub client's own cache folder (HF_HUB_CACHE, HF_HOME), so files already on the machine
    are not fetched again; access is still checked for every job.
    """
    if settings.hub_dir is not None:
        return LocalHub(settings.hub_dir)
    # Imported late: the client is slow to load and not needed for a local hub folder.
    from huggingface_hub import constants

    from rebase.hub.remote import RemoteHub

    token = settings.hub_token.get_secret_value() if settings.hub_token else None
    endpoint = os.environ.get("HF_ENDPOINT") or None
    return RemoteHub(token, endpoint, Path(constants.HF_HUB_CACHE))


CHECKPOINT_S = 60.0


@dataclass(frozen=True, slots=True)
class Runtime:
    """The hub, the factor cache and the device.

    `activation_bytes`: memory for sums over activations. `model_bytes`: memory for running models; None: most
    of what is free. `scratch_dir`: where a run may store temporary rows. `tasks_dir`: evaluation tasks in
    addition to those of the harness. `checkpoint_s`: seconds between checkpoints of a training run.
    """

    hub: Hub
    cache: FactorCache
    device: torch.device
    activation_bytes: int = 4 * 2**30
    model_bytes: int | None = None
    scratch_dir: Path = Path(tempfile.gettempdir())
    tasks_dir: Path | None = None
    checkpoint_s: float = CHECKPOINT_S


def make_runtime(settings: Settings) -> Runtime:
    """The runtime for these settings. Raises RequestInvalid if the requested device is not available."""
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


@contextmanager
def disk_errors() -> Iterator[None]:
    """Translate errors about a full disk into DiskFull, which is retryable."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(
                "The worker's disk is full.", hint="Free disk space on the worker; the job will be retried."
            ) from exc
        raise
    except SafetensorError as exc:
        # safetensors embeds the operating system's error in its own message.
        if "os error 28" in str(exc).lower() or "os error 27" in str(exc).lower():
            raise DiskFull(
                "The worker's disk is full.", hint="Free disk space on the worker; the job will be retried."
            ) from exc
        raise


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether an allocation failed, on the GPU or in main memory (for which torch has no error type)."""
    if isinstance(exc, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(exc, RuntimeError) and "can't allocate memory" in str(exc)


def pick_device(requested: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device of this worker. Raises RequestInvalid if CUDA is requested but not available."""
    if requested == "cuda" and not torch.cuda.is_available():
        raise RequestInvalid(
            "REBASE_DEVICE is 'cuda' but this machine has no CUDA device.",
            hint="Set REBASE_DEVICE=auto or cpu, or start the worker on a GPU machine.",
        )
    if requested == "cuda" or (requested == "auto" and torch.cuda.is_available()):
        # TF32 would cost three digits of precision in the Gram matrices.
        torch.backends.cuda.matmul.allow_tf32 = False
        return torch.device("cuda")
    return torch.device("cpu")
