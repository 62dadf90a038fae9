"""requirements.lock names one version of everything, and no place to get it from."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
PINS = dict(line.split("==") for line in LOCK.splitlines() if not line.startswith("#"))
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "lock.py"))


def test_each_line_is_a_name_and_an_exact_public_version() -> None:
    for line in LOCK.splitlines():
        assert line.startswith("#") or re.fullmatch(r"[a-z0-9][a-z0-9-]*==[0-9][A-Za-z0-9.]*", line), line
    assert "://" not in LOCK
    assert list(PINS) == sorted(PINS)


def test_everything_declared_is_pinned_within_its_bounds() -> None:
    for requirement in SCRIPT["read_declared_requirements"]():
        pin = PINS[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), requirement


def test_one_torch_for_cpu_and_gpu_hosts() -> None:
    torch = next(r for r in SCRIPT["read_declared_requirements"]() if r.name == "torch")
    assert torch.specifier.contains(PINS["torch"])
    assert Version(PINS["torch"]).local is None
    # A constraint without a local label admits builds that have one.
    assert Version("2.13.0+cpu") in __import__("packaging.specifiers", fromlist=["x"]).SpecifierSet(
        "==2.13.0"
    )


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the lock is made on Python 3.11")
def test_nothing_that_is_pulled_in_is_left_unpinned() -> None:
    assert set(SCRIPT["resolve_closure"](SCRIPT["read_declared_requirements"]())) == set(PINS)
