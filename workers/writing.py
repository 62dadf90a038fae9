"""The folder that is pushed: PEFT config, weights, card and report."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from rebase.errors import DiskFull
from transfer.adapter.write import BuiltAdapter
from workers.card import MAP_FILE, render_model_card
from workers.drawing import draw_layer_map
from workers.report import Report
from workers.resolve import REPORT_FILE


@contextmanager
def disk_errors() -> Iterator[None]:
    """A full disk becomes the typed, retryable error."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(
                "The worker's disk is full.", hint="Free space on the worker; the job tries again."
            ) from exc
        raise
    except SafetensorError as exc:
        # The library wraps the operating system's error in its own text.
        if "os error 28" in str(exc).lower() or "os error 27" in str(exc).lower():
            raise DiskFull(
                "The worker's disk is full.", hint="Free space on the worker; the job tries again."
            ) from exc
        raise


def write_tensors(folder: Path, built: BuiltAdapter) -> None:
    """Weights and PEFT config. Raises DiskFull."""
    with disk_errors():
        folder.mkdir(parents=True, exist_ok=False)
        weights = folder / "adapter_model.safetensors"
        save_file(built.tensors, weights, metadata={"format": "pt"})
        # The library writes for the owner alone; the other files follow the process's umask.
        weights.chmod(folder.stat().st_mode & 0o666)
        text = json.dumps(built.config, indent=2, sort_keys=True, allow_nan=False) + "\n"
        (folder / "adapter_config.json").write_text(text, encoding="utf-8")


def write_card_and_report(folder: Path, report: Report, licenses: dict[str, str | None]) -> None:
    """The evidence beside the weights. Raises DiskFull."""
    with disk_errors():
        (folder / REPORT_FILE).write_text(report.to_json(), encoding="utf-8")
        (folder / "README.md").write_text(render_model_card(report, licenses), encoding="utf-8")
        if report.layer_map is not None:
            picture = draw_layer_map(report.layer_map, report.source.repo_id, report.target.repo_id)
            (folder / MAP_FILE).write_bytes(picture)
