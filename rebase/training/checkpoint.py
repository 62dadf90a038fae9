"""Training checkpoints: one safetensors file with its metadata as JSON, written atomically.

A single file keeps the step count and the tensors consistent. A file that is damaged, or that belongs to
other settings, is treated as missing.
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

_METADATA_KEY = "rebase.training"


def save_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], identity: str
) -> None:
    """Replace the file. `metadata`: JSON values; `identity`: must match on loading. Raises DiskFull."""
    cpu_tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    header = {"identity": identity, "sha256": _compute_digest(cpu_tensors, metadata), "facts": dict(metadata)}
    partial_file = path.with_name(f"{path.name}.{os.getpid()}.part")
    with disk_errors():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(cpu_tensors, partial_file, metadata={_METADATA_KEY: json.dumps(header, sort_keys=True)})
            partial_file.replace(path)
        finally:
            partial_file.unlink(missing_ok=True)


def load_checkpoint(path: Path, identity: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors on the CPU and metadata, or None if there is no valid file with this identity."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = json.loads((file.metadata() or {})[_METADATA_KEY])
            if header["identity"] != identity:
                return None
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            metadata = dict(header["facts"])
            return (tensors, metadata) if header["sha256"] == _compute_digest(tensors, metadata) else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError):
        return None


def compute_identity(**settings: Any) -> str:
    """A digest of JSON values, the same for the same settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _compute_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    sha = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in tensors.items():
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(uint8).numpy().data)
    return sha.hexdigest()
