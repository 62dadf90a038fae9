"""`rebase demo`: the main job on the bundled models, as `make demo` runs it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from support.command import REBASE
from support.running_service import clean_environment


@pytest.mark.e2e
def test_the_demo_keeps_its_promises_and_leaves_nobody_behind(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*REBASE, "demo", "--home", str(tmp_path), "--port", "0"],
        env=clean_environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    alone, moved, native = (float(loss) for loss in re.findall(r"(?:alone|adapter) +(\d+\.\d+)$", out, re.M))
    assert native < alone and moved < alone
    verdicts = re.findall(r"^verdict +(\w+)$", out, re.M)
    assert verdicts[0] in {"compatible", "uncertain"}
    assert verdicts[1] in {"uncertain", "incompatible"}
    place = re.search(r"^ +(/\S+/revisions/[0-9a-f]{40})$", out, re.M)
    assert place is not None and (Path(place[1]) / "adapter_model.safetensors").is_file()
    assert "Traceback" not in err
