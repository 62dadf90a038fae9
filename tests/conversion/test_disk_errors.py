"""The written folder, on a disk that has room and on one that has none."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

_PROGRAM = textwrap.dedent(
    """
    import resource, signal, sys
    from pathlib import Path
    import torch
    from rebase.errors import DiskFull
    from rebase.lora.writer import BuiltAdapter
    from rebase.conversion.output_folder import write_tensors

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    tensors = {"base_model.model.x.lora_A.weight": torch.zeros(64, 64)}
    limit = int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write_tensors(Path(sys.argv[1]), BuiltAdapter(tensors, {"r": 64}, 64, {}))
    except DiskFull as full:
        print("full:", full.message, full.hint)
    else:
        print("written")
    """
)


def _write(folder: Path, limit: int) -> str:
    """Write 16 kB of tensors in a process whose files may not grow beyond `limit` bytes."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(folder), str(limit)], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_a_disk_without_room_is_a_typed_error_that_says_what_to_do(tmp_path: Path) -> None:
    answer = _write(tmp_path / "out", 4096)
    assert answer.startswith("full: The worker's disk is full.")
    assert "Free disk space" in answer


def test_a_disk_with_room_gets_both_files(tmp_path: Path) -> None:
    assert _write(tmp_path / "out", 10**6) == "written\n"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
