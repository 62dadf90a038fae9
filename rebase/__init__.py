"""Rebase: transfer LoRA adapters to new base models.

    result = rebase.convert("acme/sql-lora", "Qwen/Qwen3-1.7B", out="./transferred")
    rebase.precheck("acme/sql-lora", "Qwen/Qwen3-1.7B").verdict
    rebase.methods()

Importing this package leaves torch unloaded; the first conversion loads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rebase.conversion.api import convert as convert
    from rebase.conversion.api import precheck as precheck
    from rebase.conversion.pipeline import ConversionResult as ConversionResult

__all__ = ["ConversionResult", "convert", "methods", "precheck"]


def __getattr__(name: str) -> Any:
    """The API, loaded on first use [PEP 562]. `methods` and `precheck` are packages that can be called."""
    import importlib

    homes = {
        "convert": "rebase.conversion.api",
        "ConversionResult": "rebase.conversion.pipeline",
    }
    if name in homes:
        return getattr(importlib.import_module(homes[name]), name)
    if name in ("methods", "precheck"):
        return importlib.import_module(f"rebase.{name}")
    raise AttributeError(f"module 'rebase' has no attribute {name!r}")
