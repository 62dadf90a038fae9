"""Writes the output folder (PEFT config, weights, card and report), and cleans up old work folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file

from rebase.lora.writer import BuiltAdapter
from rebase.report.layer_heatmap import draw_layer_map
from rebase.report.model_card import MAP_FILE, render_model_card
from rebase.report.schema import REPORT_FILE, Report
from rebase.runtime import disk_errors


def write_tensors(folder: Path, built: BuiltAdapter) -> None:
    """Write weights and PEFT config. Raises DiskFull."""
    with disk_errors():
        folder.mkdir(parents=True, exist_ok=False)
        weights = folder / "adapter_model.safetensors"
        save_file(built.tensors, weights, metadata={"format": "pt"})
        # safetensors makes the file private to its owner; the other files follow the process's umask.
        weights.chmod(folder.stat().st_mode & 0o666)
        text = json.dumps(built.config, indent=2, sort_keys=True, allow_nan=False) + "\n"
        (folder / "adapter_config.json").write_text(text, encoding="utf-8")


def write_card_and_report(folder: Path, report: Report, licenses: dict[str, str | None]) -> None:
    """Write the model card, the report and the layer map. Raises DiskFull."""
    with disk_errors():
        (folder / REPORT_FILE).write_text(report.to_json(), encoding="utf-8")
        (folder / "README.md").write_text(render_model_card(report, licenses), encoding="utf-8")
        if report.layer_map is not None:
            picture = draw_layer_map(report.layer_map, report.source.repo_id, report.target.repo_id)
            (folder / MAP_FILE).write_bytes(picture)


# Killed, cancelled and failed jobs leave files in the work folder. Samples and checkpoints stay so that
# another worker can resume the training; a process killed while collecting activations leaves their rows.
# After a week they are no longer needed.

MAX_AGE_S = 7 * 24 * 3600.0  # running trainings write every minute, so anything older is unused


def remove_stale(work_dir: Path, now: float) -> None:
    """Remove folders last modified more than a week before `now` (seconds since the epoch). Never raises on
    disk errors."""
    for folder in (*work_dir.glob("training/*"), *work_dir.glob("rows-*")):
        if now - _get_last_modified(folder) > MAX_AGE_S:
            shutil.rmtree(folder, ignore_errors=True)


def _get_last_modified(folder: Path) -> float:
    times = []
    for path in (folder, *folder.glob("*")):
        try:
            times.append(path.stat().st_mtime)
        except OSError:  # removed in the meantime
            continue
    return max(times, default=float("inf"))
