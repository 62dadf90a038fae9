"""Which causal model types of the installed transformers an adapter can be moved between.

    python -m benchmarks.families [TYPE…]

For each type a tiny model with random weights, a LoRA on every linear module that PEFT accepts, moved by
`copy` to an equal model through the whole engine. The row says how many modules have a role that other
architectures know, how many are only copied, and how far the effect on the logits is from the original's.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import torch
import transformers

from rebase.lora.low_rank import Role
from rebase.models.architecture import get_architecture
from support.causal_types import CAUSAL_TYPES, NOT_TRIED, make_tiny_config
from support.type_sweep import move_between_equal_models

_MAX_ERROR = 5e-3


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a Markdown table; exit status 1 if a type that is tried does not move."""
    types = list(arguments if arguments is not None else sys.argv[1:]) or list(CAUSAL_TYPES)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    print(f"transformers {transformers.__version__}, {len(types)} types\n")
    print("| type | modules with a role | copied only | error | seconds |")
    print("| --- | ---: | ---: | ---: | ---: |")
    carried, failed = 0, 0
    for name in types:
        if name in NOT_TRIED:
            print(f"| {name} | not tried: {NOT_TRIED[name]} | | | |")
            continue
        started = time.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix="families-") as folder:
                result = move_between_equal_models(name, Path(folder))
        except Exception as exc:
            failed += 1
            print(f"| {name} | FAILED: {type(exc).__name__}: {str(exc)[:120]!r} | | | |", flush=True)
            continue
        architecture = get_architecture(make_tiny_config(name).to_dict())
        roles = [site.role for site in architecture.sites]
        known = sum(isinstance(role, Role) for role in roles)
        moved = result.error <= _MAX_ERROR
        carried, failed = carried + moved, failed + (not moved)
        seconds = time.monotonic() - started
        print(f"| {name} | {known} | {len(roles) - known} | {result.error:.0e} | {seconds:.1f} |", flush=True)
    print(f"\n{carried} carried, {failed} failed, {len(set(types) & set(NOT_TRIED))} not tried.")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
