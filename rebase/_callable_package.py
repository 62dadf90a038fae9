"""Packages that are also functions: `rebase.methods()` and `rebase.precheck(...)`.

The Python API and the folders of the library share two names, and importing a folder sets the attribute of
`rebase` to the module. So these two modules can be called; the call goes to the API.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


def make_callable(package: str, target: str) -> None:
    """Let a package be called like the function at `target` ("module:function"), imported on first call."""
    home, _, name = target.partition(":")

    class CallablePackage(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(home), name)(*args, **kwargs)

    sys.modules[package].__class__ = CallablePackage
