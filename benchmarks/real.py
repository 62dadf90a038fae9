"""What a trained adapter's skill is worth after a move between families: SmolLM2-135M → Gemma-3-270M.

    python -m benchmarks.real

A LoRA trained on the harbour log (an invented domain language) is moved by `cross_lora`, and Gemma's loss on
held-out entries is compared with Gemma alone, with random updates of the same norms, and with a LoRA trained
on Gemma itself by the same recipe (the ceiling). `recovered` is the share of that native gain. Weights come
from packages (see tests/support/real_models.py). The last line is one JSON object.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from core.requests import ConversionRequest
from support import real_adapter
from support.real_models import GEMMA3, SMOLLM2
from support.real_repos import ADAPTER_REPO, Base, fill_hub, open_base
from transfer.gap import gap_recovered
from workers.cache.factors import FactorCache
from workers.hub.local import LocalHub
from workers.pipeline import Conversion, run
from workers.tools import Tools
from workers.watch import Silent

ENTRIES = 32  # of held-out text: some two dozen sequences of 96 tokens
RANDOM_SEEDS = (1, 2)
MOVES: dict[str, dict[str, Any]] = {
    "anchored": {"name": "cross_lora", "alignment": "anchored"},
    "anchored, norm preserved": {"name": "cross_lora", "alignment": "anchored", "norm": "preserve"},
    "index": {"name": "cross_lora", "alignment": "index"},
    "index, norm preserved": {"name": "cross_lora", "alignment": "index", "norm": "preserve"},
}


def move(hub: Path, cache: Path, method: dict[str, Any], folder: Path) -> Conversion:
    """The adapter on Gemma, in `folder`, by the pipeline itself."""
    body = {
        "adapter": {"repo_id": ADAPTER_REPO},
        "target": {"repo_id": GEMMA3.repo_id},
        "method": method,
        "precheck": {"on_incompatible": "warn"},
    }
    tools = Tools(LocalHub(hub), FactorCache(cache, 2**33, None, 60, 2**20), torch.device("cpu"))
    outcome = run(ConversionRequest.model_validate(body), "convert", tools, Silent(), folder, marker=None)
    assert isinstance(outcome, Conversion)
    return outcome


def randomised(moved: Path, folder: Path, seed: int) -> Path:
    """Gaussian updates with each module's rank and Frobenius norm taken from the adapter in `moved`."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text((moved / "adapter_config.json").read_text())
    tensors = load_file(moved / "adapter_model.safetensors")
    drawn: dict[str, Tensor] = {}
    noise = torch.Generator().manual_seed(seed)
    for name in sorted(name for name in tensors if ".lora_A." in name):
        twin = name.replace(".lora_A.", ".lora_B.")
        A, B = (torch.randn(tensors[key].shape, generator=noise) for key in (name, twin))
        wanted = torch.linalg.matrix_norm(tensors[twin].float() @ tensors[name].float())
        drawn[name], drawn[twin] = A, B * (wanted / torch.linalg.matrix_norm(B @ A))
    save_file(drawn, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def losses_with(base: Base, adapter: Path) -> Tensor:
    """Nats per token of each held-out sequence with the adapter on; the base is left as it was."""
    adapted = PeftModel.from_pretrained(base.model, str(adapter))
    found = real_adapter.row_losses(adapted, base.tokenizer, ENTRIES)
    adapted.unload()
    return found


def moved_losses(hub: Path, scratch: Path, gemma: Base) -> Iterator[tuple[str, Tensor]]:
    """(name, losses per sequence) on Gemma for every way to move the adapter, and for random ones."""
    for name, method in MOVES.items():
        folder = scratch / name
        started = time.monotonic()
        outcome = move(hub, scratch / "cache", method, folder)
        took = time.monotonic() - started
        print(f"{name}: verdict {outcome.report.precheck.verdict}, {took:.0f} s", file=sys.stderr, flush=True)
        yield f"cross_lora {name}", losses_with(gemma, folder)
        for seed in RANDOM_SEEDS if name.startswith("anchored") else ():
            other = randomised(folder, scratch / f"{name} random {seed}", seed)
            yield f"random, norms of {name} ({seed})", losses_with(gemma, other)


def row_of(name: str, losses: Tensor, alone: Tensor, native: Tensor) -> dict[str, Any]:
    """Mean loss, paired change against Gemma alone with its standard error, and share of the native gain."""
    change = losses - alone
    score, base, oracle = (-float(row.mean()) for row in (losses, alone, native))
    recovered = gap_recovered(score, base=base, oracle=oracle)
    return {
        "name": name,
        "loss": round(float(losses.mean()), 4),
        "change": round(float(change.mean()), 4),
        "standard_error": round(float(change.std()) / math.sqrt(len(change)), 4),
        "recovered": round(recovered, 4) + 0.0,  # no minus zero
    }


def main() -> int:
    """Print the table and the JSON line."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    source = real_adapter.losses(real_adapter.trained_adapter())
    print(f"{SMOLLM2.name}, held-out loss: {source['before']} alone, {source['after']} with its adapter")
    print(f"{'on ' + GEMMA3.name:52s} {'nats':>8s} {'change':>9s} {'± s.e.':>8s} {'recovered':>10s}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="real-pair-") as folder:
        hub = Path(folder) / "hub"
        fill_hub(hub)
        gemma = open_base(hub, GEMMA3)
        alone = real_adapter.row_losses(gemma.model, gemma.tokenizer, ENTRIES)
        native = losses_with(gemma, real_adapter.trained_adapter(GEMMA3))
        known = [("alone", alone), ("native LoRA (the ceiling)", native)]
        for name, losses in chain(known, moved_losses(hub, Path(folder), gemma)):
            row = row_of(name, losses, alone, native)
            rows.append(row)
            print(
                f"{name:52s} {row['loss']:8.3f} {row['change']:+9.3f} {row['standard_error']:8.3f} "
                f"{row['recovered']:10.3f}",
                flush=True,
            )
    about = {"sequences": len(alone), "tokens": real_adapter.RECIPE.tokens, "source": source}
    print(json.dumps({"machine": platform.machine(), "torch": torch.__version__, **about, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
