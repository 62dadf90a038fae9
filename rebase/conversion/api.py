"""The pipeline in this process: what `rebase transfer` and `rebase precheck --local` run. Importing it loads
torch."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rebase.conversion.output_folder import remove_stale
from rebase.conversion.pipeline import run_conversion
from rebase.conversion.plan import Kind, plan_conversion
from rebase.errors import CommandFailed, FileMissing
from rebase.hub.aliases import AliasedHub
from rebase.report.progress import ProgressReporter
from rebase.report.schema import Report
from rebase.runtime import make_runtime
from rebase.schemas.anchor_pools import NO_ANCHOR_POOLS, AnchorPools
from rebase.schemas.conversions import ConversionRequest
from rebase.settings import Settings


def require_empty_folder(out_dir: Path) -> None:
    """An output folder must be new or empty, in a place that can be written."""
    with _output_folder_errors(out_dir):
        if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
            raise CommandFailed(
                f"{out_dir} exists and is not an empty folder.", hint="Name a new folder with --out."
            )
        parent = out_dir.absolute().parent
        while not parent.exists():
            parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise CommandFailed(f"{out_dir} cannot be made: {parent} is no folder that can be written.")


@contextmanager
def _output_folder_errors(folder: Path) -> Iterator[None]:
    """What the operating system has against `folder`, in a sentence."""
    try:
        yield
    except OSError as exc:
        raise CommandFailed(
            f"{folder} cannot be made: {exc.strerror}.", hint="Name a folder in a place that can be written."
        ) from exc


def run_in_process(
    request: ConversionRequest,
    kind: Kind,
    settings: Settings,
    folders: dict[str, str],
    progress: ProgressReporter,
    out_dir: Path | None,
    pools: AnchorPools = NO_ANCHOR_POOLS,
    corpus_file: Path | None = None,
) -> Report:
    """Run the request; for a conversion the PEFT folder appears at `out` in one rename, or not at all."""
    home = settings.resolved_home
    runtime = make_runtime(settings)
    runtime = replace(runtime, hub=AliasedHub(runtime.hub, folders, home / "hashes"))
    remove_stale(runtime.scratch_dir, time.time())
    # Beside the goal, so that the last step is a rename within one file system.
    parent_dir = out_dir.absolute().parent if out_dir is not None else settings.resolved_work_dir
    with _output_folder_errors(out_dir or parent_dir):
        parent_dir.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".rebase-", dir=parent_dir))
    try:
        adapter_dir = scratch / "adapter"
        result = run_conversion(
            plan_conversion(request, kind, corpus_file=corpus_file),
            runtime,
            progress,
            adapter_dir,
            marker=None,
            pools=pools,
        )
        report = getattr(result, "report", None)
        if not isinstance(report, Report):
            raise TypeError("a run without a marker ends with a report")
        if out_dir is not None:
            (scratch / "adapter").replace(out_dir)
        return report
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def find_local_base(adapter: str) -> str | None:
    """The base that a local adapter folder names, when that is itself a folder here; PEFT writes such
    paths."""
    try:
        base = json.loads((Path(adapter) / "adapter_config.json").read_text("utf-8"))[
            "base_model_name_or_path"
        ]
    except FileNotFoundError as exc:
        raise FileMissing(f"{adapter} has no adapter_config.json.", pointer="/adapter") from exc
    except (OSError, ValueError, KeyError, TypeError):
        return None  # the pipeline reads the file again and says what is wrong with it
    return base if isinstance(base, str) and base and Path(base).is_dir() else None
