"""Prediction from a large anchor pool: time and memory, against reading its files once, the floor.

    make bench NAME=anchors [ARGS="--anchors 50 --layers 36"]

Adapters of rank 16 on all seven modules of a 3B model's shape, random numbers in bfloat16; the two bases are
files with headers and holes, since no base weight is read. Each step is a process of its own on one folder:
registering (every tensor read, inner products computed), then predicting two adapters, one after the other.
`peak` is the largest resident memory of the process beyond what the libraries take.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.synthetic import LARGE, VOCABULARY
from rebase.cache.factor_cache import FactorCache
from rebase.evidence.anchor_pool import LoadedAnchorPool, load_anchor_pool
from rebase.evidence.pool_registration import register_pool
from rebase.hub.local import LocalHub
from rebase.lora.config import AdapterConfig
from rebase.lora.low_rank import Side
from rebase.lora.reader import read_adapter
from rebase.methods.anchor_ridge.method import AnchorRidge
from rebase.methods.anchor_ridge.params import AnchorRidgeParams
from rebase.methods.base import BasePairInfo
from rebase.methods.site_pairing import pair_sites
from rebase.models.adapter_reader import open_adapter
from rebase.models.base_pair import BaseModelRef
from rebase.models.model_reader import open_model
from rebase.models.weights import ModelWeights
from rebase.report.progress import NullReporter
from rebase.runtime import Runtime
from rebase.schemas.anchor_pools import Pool, PoolRequest
from rebase.schemas.repos import RepoRef
from rebase.schemas.states import Phase

RANK: Final = 16
MODULES: Final = [name.split(".")[1] for name in LARGE.sites()]


def make_hub(root: Path, anchors: int, layers: int) -> None:
    """Two bases, `anchors` pairs of adapters, and one adapter to move."""
    for base in ("old", "new"):
        _base(root / "acme" / base, layers)
    for number in range(anchors):
        for base in ("old", "new"):
            _adapter(
                root / f"acme/{base}-{number}", f"acme/{base}", layers, seed=2 * number + (base == "new")
            )
    for moved in ("one", "two"):
        _adapter(root / f"acme/{moved}", "acme/old", layers, seed=10_000 + len(moved) + (moved == "two"))


def _base(folder: Path, layers: int) -> None:
    """config.json, and a safetensors file whose data is one hole: sizes are true, nothing is stored."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LARGE.config(layers)))
    shapes = {"model.embed_tokens.weight": (VOCABULARY, LARGE.hidden), "model.norm.weight": (LARGE.hidden,)}
    for layer in range(layers):
        stem = f"model.layers.{layer}"
        shapes |= {f"{stem}.{name}.weight": shape for name, shape in LARGE.sites().items()}
        for name in ("q_proj", "k_proj", "v_proj"):
            shapes[f"{stem}.self_attn.{name}.bias"] = (LARGE.sites()[f"self_attn.{name}"][0],)
        shapes |= {f"{stem}.{norm}_layernorm.weight": (LARGE.hidden,) for norm in ("input", "post_attention")}
    header: dict[str, Any] = {}
    start = 0
    for name, shape in shapes.items():
        end = start + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + start)


def _adapter(folder: Path, base: str, layers: int, seed: int) -> None:
    folder.mkdir(parents=True)
    made = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(layers):
        for module, (o, i) in LARGE.sites().items():
            stem = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{stem}.lora_A.weight"] = (
                torch.randn(RANK, i, generator=made).to(torch.bfloat16) / i**0.5
            )
            tensors[f"{stem}.lora_B.weight"] = (
                torch.randn(o, RANK, generator=made).to(torch.bfloat16) / o**0.5
            )
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": MODULES,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _request(anchors: int) -> PoolRequest:
    return PoolRequest.model_validate(
        {
            "source": {"repo_id": "acme/old"},
            "target": {"repo_id": "acme/new"},
            "anchors": [
                {
                    "source": {"repo_id": f"acme/old-{number}"},
                    "target": {"repo_id": f"acme/new-{number}"},
                    "domain": f"domain {number % 5}",
                }
                for number in range(anchors)
            ],
        }
    )


def step(name: str, root: Path, anchors: int) -> dict[str, float]:
    """Seconds and peak memory (GB beyond the libraries) of one step, in this process."""
    tools = Runtime(LocalHub(root / "hub"), FactorCache(root / "cache", 2**34), torch.device("cpu"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    if name == "reading every file once":
        for path in sorted((root / "hub").rglob("adapter_model.safetensors")):
            with safe_open(path, "pt") as file:
                for tensor in file.keys():  # noqa: SIM118  (not a dict)
                    file.get_tensor(tensor).float()
    elif name == "register":
        register_pool(_request(anchors), tools, NullReporter())
    else:
        _predict(_open(tools, anchors, f"acme/{name.split()[-1]}"))
    taken = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": taken, "peak_gb": (peak - before) / 1e6}


def _open(tools: Runtime, anchors: int, moved: str) -> LoadedAnchorPool:
    bases: dict[Side, BaseModelRef] = {}
    sides: dict[Side, str] = {"source": "acme/old", "target": "acme/new"}
    for side, repo_id in sides.items():
        pinned = tools.hub.resolve(RepoRef(repo_id=repo_id))
        config, reader, _ = open_model(tools.hub, pinned)
        bases[side] = BaseModelRef(pinned, ModelWeights(config, reader))
    raw, file = open_adapter(tools.hub, tools.hub.resolve(RepoRef(repo_id=moved)))
    adapter = read_adapter(AdapterConfig.parse(raw), file, bases["source"].weights)
    old, new = bases["source"].weights, bases["target"].weights
    pairing = pair_sites(old, new, adapter.sites, layer_scale=True)
    pool = Pool(None, _request(anchors))
    return load_anchor_pool(
        pool,
        tools.hub,
        bases,
        pairing,
        adapter,
        tools.cache,
        tools.device,
        NullReporter(),
        phase=Phase.READING,
        pointer=lambda *_: "",
    )


def _predict(pool: LoadedAnchorPool) -> None:
    params, method = AnchorRidgeParams(), AnchorRidge()
    state = method.prepare(params, BasePairInfo({}, {}, pool.pairs, pool))
    assert pool.adapter is not None

    class Evidence:
        def __init__(self, pair: Any) -> None:
            self.pair = pair

        def anchor_updates(self) -> Any:
            return pool.updates("target", self.pair.target)

    for pair in pool.pairs:
        evidence: Any = Evidence(pair)
        method.transfer_site(params, state, pair, pool.adapter.delta(pair.source), evidence)


STEPS: Final = ("reading every file once", "register", "predict one", "predict two")


def main() -> None:
    """Print the table, and the same figures as one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--anchors", type=int, default=50)
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--step", nargs=2, metavar=("STEP", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        print(json.dumps(step(given.step[0], Path(given.step[1]), given.anchors)))
        return
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    figures: dict[str, Any] = {"anchors": given.anchors, "layers": given.layers}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make_hub(root / "hub", given.anchors, given.layers)
        files = list((root / "hub").rglob("adapter_model.safetensors"))
        figures["gb_on_disk"] = sum(path.stat().st_size for path in files) / 1e9
        print(
            f"{given.anchors} anchors, {given.layers} layers, rank {RANK}: "
            f"{figures['gb_on_disk']:.2f} GB of adapters\n"
        )
        print(f"{'step':28}{'seconds':>10}{'peak GB':>10}")
        for name in STEPS:
            command = [sys.executable, "-m", "benchmarks.anchors", "--step", name, str(root)]
            command += ["--anchors", str(given.anchors), "--layers", str(given.layers)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = figures[name] = json.loads(done.stdout.splitlines()[-1])
            print(f"{name:28}{found['seconds']:10.1f}{found['peak_gb']:10.2f}", flush=True)
    print(json.dumps({"benchmark": "anchors", "figures": figures}))


if __name__ == "__main__":
    main()
