"""One cell of the table of `benchmarks.real`: one adapter moved one way, and the target's scores with it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.real_rows import ALL, Wanted
from rebase.cache.factor_cache import FactorCache
from rebase.conversion.pipeline import ConversionResult, run_conversion
from rebase.conversion.plan import plan_conversion
from rebase.errors import RebaseError, TransferError
from rebase.hub.local import LocalHub
from rebase.report.progress import NullReporter
from rebase.runtime import Runtime, pick_device
from rebase.schemas.anchor_pools import NO_ANCHOR_POOLS, AnchorPools, Pool, PoolRequest
from rebase.schemas.conversions import ConversionRequest
from support import real_adapter
from support.real_models import GEMMA3, SMOLLM2, STORIES, RealModel, prepare
from support.real_repos import fill_hub, open_base, place
from support.real_tasks import TASKS, score

PAIRS: Mapping[str, tuple[RealModel, RealModel]] = {
    "smollm2-to-gemma3": (SMOLLM2, GEMMA3),
    "gemma3-to-smollm2": (GEMMA3, SMOLLM2),
    "smollm2-to-stories": (SMOLLM2, STORIES),
    "gemma3-to-stories": (GEMMA3, STORIES),
}
SEED = 1  # of random updates
_TOLD = ("cast_", "distill_", "step_")  # of the report's summary, kept beside a cell


@dataclass(frozen=True)
class Cell:
    """Scores of each held-out example (see `support.real_tasks.Scores`), or why there are none."""

    pair: str
    task: str
    row: str
    nats: list[float] = field(default_factory=list)
    right: list[float] = field(default_factory=list)
    verdict: str = ""
    refused: str = ""
    seconds: float = 0.0
    summary: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    """Cells as files, so that what was measured once is read."""

    folder: Path

    def get_or(self, pair: str, task: str, row: str, measure: Callable[[str, str, str], Cell]) -> Cell:
        """The cell, measured now unless it is there."""
        file = self._file(pair, task, row)
        if not file.exists():
            cell = measure(pair, task, row)
            self.folder.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(asdict(cell)))
        return self.read(pair, task, row)

    def read(self, pair: str, task: str, row: str) -> Cell:
        """A cell that is there."""
        return Cell(**json.loads(self._file(pair, task, row).read_text()))

    def _file(self, pair: str, task: str, row: str) -> Path:
        return self.folder / f"{pair} {task} {row}.json"


class Lab:
    """A hub with the bases and all adapters; the target of the last pair stays loaded. `examples`: of the
    held-out ones, so many are scored; `trained`: where the adapter of a base and a task lies."""

    def __init__(
        self,
        scratch: Path,
        rows: Mapping[str, Wanted] = ALL,
        examples: int | None = None,
        trained: Callable[[RealModel, str], Path] = real_adapter.trained_adapter,
    ) -> None:
        self.scratch, self.rows, self.examples, self.trained = scratch, rows, examples, trained
        self._loaded: tuple[str, Any] | None = None

    @cached_property
    def hub(self) -> Path:
        """The hub's folder, filled at first use."""
        root = self.scratch / "hub"
        fill_hub(root, self.trained(SMOLLM2, real_adapter.HARBOUR_LOG))
        return root

    def _ready(self, base: RealModel) -> None:
        """The tests' own bases are on the hub; others come when a pair has them."""
        if not (self.hub / base.repo_id).exists():
            place(prepare(base), self.hub / base.repo_id)

    def measure(self, pair: str, task: str, row: str) -> Cell:
        """Move (unless the row is a bound or a control of its own) and score."""
        for base in PAIRS[pair]:
            self._ready(base)
        if row == "alone":
            return self._scored(pair, task, row, None)
        if row == "native":
            return self._scored(pair, task, row, self._adapter(task, PAIRS[pair][1]))
        wanted = self.rows[row]
        started = time.monotonic()
        folder = self._folder(pair, task, wanted if isinstance(wanted, str) else row)
        try:
            outcome = None if folder.exists() else self._moved(pair, task, wanted, folder)
        except (RebaseError, TransferError) as refusal:
            return Cell(pair, task, row, refused=refusal.message)
        report = json.loads((folder / "rebase_report.json").read_text())
        took = time.monotonic() - started if outcome is not None else 0.0
        if isinstance(wanted, str):
            folder = randomised(folder, self._folder(pair, task, row), SEED)
        told = {name: value for name, value in report["summary"].items() if name.startswith(_TOLD)}
        return self._scored(pair, task, row, folder, report["precheck"]["verdict"], took, told)

    def _moved(self, pair: str, task: str, wanted: Wanted, folder: Path) -> ConversionResult:
        method = self.rows[wanted] if isinstance(wanted, str) else wanted
        assert isinstance(method, dict)
        prompts = TASKS[task].prompts(512)
        if method["name"] == "distill" and prompts is not None:
            # Answers are a few tokens long, so a step holds more of them.
            method = method | {"prompts": prompts, "batch": 16, "length": 16}
        if method.get("solve", "maps") != "maps" and prompts is not None:
            method = method | {"written": {"prompts": prompts, "length": 16}}
        source, target = PAIRS[pair]
        body = {
            "adapter": {"repo_id": self._name(task, source)},
            "target": {"repo_id": target.repo_id},
            "method": method,
            "precheck": {"on_incompatible": "warn"},
        }
        tools = Runtime(
            LocalHub(self.hub),
            FactorCache(self.scratch / "cache", 2**34, None, 60, 2**20),
            pick_device("cuda" if real_adapter.DEVICE == "cuda" else "cpu"),
            scratch_dir=self.scratch / "work",
        )
        request = ConversionRequest.model_validate(body)
        outcome = run_conversion(
            plan_conversion(request, "convert"),
            tools,
            NullReporter(),
            folder,
            marker=None,
            pools=self._pools(pair, task) if method["name"] == "anchor_ridge" else NO_ANCHOR_POOLS,
        )
        assert isinstance(outcome, ConversionResult)
        return outcome

    def _scored(
        self,
        pair: str,
        task: str,
        row: str,
        adapter: Path | None,
        verdict: str = "",
        seconds: float = 0.0,
        summary: dict[str, float] | None = None,
    ) -> Cell:
        base = self._target(pair)
        model = PeftModel.from_pretrained(base.model, str(adapter)) if adapter is not None else base.model
        found = score(model, base.tokenizer, TASKS[task], self.examples)
        if adapter is not None:
            model.unload()
        said = (
            f"{pair} {task} {row}: {float(found.nats.mean()):.3f} nats, {float(found.right.mean()):.2f} right"
        )
        print(f"{said}, {verdict} {seconds:.0f} s", file=sys.stderr, flush=True)
        nats, right = found.nats.tolist(), found.right.tolist()
        return Cell(pair, task, row, nats, right, verdict, "", round(seconds, 1), summary or {})

    def _target(self, pair: str) -> Any:
        if self._loaded is None or self._loaded[0] != pair:
            self._loaded = (pair, open_base(self.hub, PAIRS[pair][1]))
        return self._loaded[1]

    def _folder(self, pair: str, task: str, row: str) -> Path:
        return self.scratch / f"{pair} {task} {row}"

    def _adapter(self, task: str, base: RealModel) -> Path:
        return self.trained(base, task)

    def _name(self, task: str, base: RealModel) -> str:
        """The trained adapter as a repo of the hub."""
        name = f"real/{task}-{base.name}"
        if not (self.hub / name).exists():
            place(self._adapter(task, base), self.hub / name)
        return name

    def _pools(self, pair: str, task: str) -> AnchorPools:
        """The other tasks, which have an adapter on both bases."""
        source, target = PAIRS[pair]
        others = [name for name in TASKS if name != task]
        if len(others) < 2:
            return NO_ANCHOR_POOLS
        anchors = [
            {
                "source": {"repo_id": self._name(name, source)},
                "target": {"repo_id": self._name(name, target)},
                "domain": name,
            }
            for name in others
        ]
        bases = {"source": {"repo_id": source.repo_id}, "target": {"repo_id": target.repo_id}}
        return _One(PoolRequest.model_validate({**bases, "anchors": anchors}))


@dataclass(frozen=True)
class _One:
    """`rebase.schemas.anchor_pools.Pools` with one pool."""

    spec: PoolRequest

    def get(self, pool_id: str) -> Pool:
        return Pool(None, self.spec)

    def find_for_bases(self, source_repo: str, target_repo: str) -> Pool | None:
        return Pool(None, self.spec)


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
