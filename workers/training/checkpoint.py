"""Where a descent stands, on disk: one safetensors file with its history as JSON, renamed into place.

One file, so that no step count can ever stand beside tensors of another step. A reader takes a file that is
damaged, or that belongs to other settings, for none at all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, uint8

from rebase.runtime import disk_errors

_FACTS = "rebase.training"


def save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], identity: str) -> None:
    """Replace the file. `facts`: JSON values; `identity`: what `load` must name again. Raises DiskFull."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    told = {"identity": identity, "sha256": _digest(held, facts), "facts": dict(facts)}
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with disk_errors():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(held, part, metadata={_FACTS: json.dumps(told, sort_keys=True)})
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def load(path: Path, identity: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors on the CPU and facts, or None where there is no sound file of this identity."""
    try:
        with safe_open(path, framework="pt", device="cpu") as stored:
            told = json.loads((stored.metadata() or {})[_FACTS])
            if told["identity"] != identity:
                return None
            tensors = {name: stored.get_tensor(name) for name in sorted(stored.keys())}
            facts = dict(told["facts"])
            return (tensors, facts) if told["sha256"] == _digest(tensors, facts) else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError):
        return None


def identity_of(**settings: Any) -> str:
    """A digest of JSON values, the same for the same settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _digest(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    sha = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in tensors.items():
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(uint8).numpy().data)
    return sha.hexdigest()
