"""The Python API: `rebase.convert` and `rebase.precheck`, and `run_locally`, which the command line uses too.

Importing this file loads torch; `import rebase` does not.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rebase.conversion.output_folder import remove_stale
from rebase.conversion.pipeline import ConversionResult, run_conversion
from rebase.conversion.plan import ConversionPlan, plan_conversion
from rebase.errors import CommandFailed, RequestInvalid
from rebase.hub.aliases import AliasedHub, FolderAliases, find_folder
from rebase.methods.params import DEFAULT_METHOD
from rebase.report.progress import NullReporter, ProgressReporter
from rebase.runtime import make_runtime
from rebase.schemas.anchor_pools import NO_ANCHOR_POOLS, AnchorPools
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.repos import parse_repo
from rebase.schemas.states import Phase
from rebase.schemas.validation import read_evaluation, validate_request
from rebase.settings import Settings

_OBJECTS = ("output", "precheck", "corpus")  # of a request, beside the method and the repos


def require_empty_folder(out_dir: Path) -> None:
    """An output folder must be new or empty, in a place that can be written."""
    with _output_folder_errors(out_dir):
        if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
            raise CommandFailed(
                f"{out_dir} exists and is not an empty folder.", hint="Choose a new folder with --out."
            )
        parent = out_dir.absolute().parent
        while not parent.exists():
            parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise CommandFailed(f"{out_dir} cannot be created: {parent} is not a writable folder.")


@contextmanager
def _output_folder_errors(folder: Path) -> Iterator[None]:
    """What the operating system has against `folder`, in a sentence."""
    try:
        yield
    except OSError as exc:
        raise CommandFailed(
            f"{folder} cannot be created: {exc.strerror}.", hint="Choose a folder in a writable location."
        ) from exc


def run_locally(
    plan: ConversionPlan,
    settings: Settings,
    folders: Mapping[str, str],
    progress: ProgressReporter,
    out_dir: Path | None,
    pools: AnchorPools = NO_ANCHOR_POOLS,
) -> ConversionResult:
    """Run a plan in this process. `folders`: alias → folder of this machine.

    For a conversion the PEFT folder appears at `out_dir` in one rename, or not at all.
    """
    runtime = make_runtime(settings)
    runtime = replace(runtime, hub=AliasedHub(runtime.hub, folders, settings.resolved_home / "hashes"))
    remove_stale(runtime.scratch_dir, time.time())
    # Beside the goal, so that the last step is a rename within one file system.
    parent_dir = out_dir.absolute().parent if out_dir is not None else settings.resolved_work_dir
    with _output_folder_errors(out_dir or parent_dir):
        parent_dir.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".rebase-", dir=parent_dir))
    try:
        result = run_conversion(plan, runtime, progress, scratch / "adapter", marker=None, pools=pools)
        if not isinstance(result, ConversionResult):
            raise TypeError("a run without a marker ends with a report")
        if out_dir is not None:
            (scratch / "adapter").replace(out_dir)
        return replace(result, folder=out_dir)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def find_local_base(adapter: Path) -> str | None:
    """The base that a local adapter folder names, when that is itself a folder here; PEFT writes such
    paths."""
    try:
        # Editors on Windows put a byte order mark at the start.
        text = (adapter / "adapter_config.json").read_text("utf-8-sig")
        base = json.loads(text)["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # the pipeline reads the file again and says what is wrong with it
    return base if isinstance(base, str) and base and Path(base).is_dir() else None


Reference = str | Path
Evaluation = Reference | Mapping[str, Any] | Sequence[Mapping[str, Any]]
ProgressCallback = Callable[[str, int, int | None], None]


def convert(
    adapter: Reference,
    target: Reference,
    *,
    source: Reference | None = None,
    method: str = DEFAULT_METHOD,
    out: Reference,
    evaluate: Evaluation | None = None,
    progress: ProgressCallback | None = None,
    **parameters: Any,
) -> ConversionResult:
    """Transfer a LoRA adapter to another base model and write the result as a PEFT folder.

    adapter, target, source: a folder of this machine, `owner/name[@revision][:subfolder]` on the Hub, or the
    address of its page there; `source` defaults to the base that the adapter names. method: a name from
    `rebase.methods()`; `auto` chooses one. out: the new folder, which must not exist or be empty. evaluate:
    examples to measure the result on, as a file, a list of objects, or the whole `evaluate` object of the
    HTTP API. progress: called with (phase, done, total). parameters: those of the method (`rank=64`), and the
    request's objects `output`, `precheck` and `corpus`.

    Raises `rebase.errors.Rejected` when the verdict is `incompatible` and the request does not say
    `precheck={"on_incompatible": "warn"}`; RequestInvalid, HubError, MalformedAdapter, UnsupportedModel and
    the other errors of `rebase.errors`, each with a sentence and what to do. Nothing is written then.

        result = rebase.convert("acme/sql-lora", "Qwen/Qwen3-1.7B", out="./transferred")
        print(result.verdict, result.method, result.folder)
    """
    out_dir = Path(out)
    require_empty_folder(out_dir)
    aliases = FolderAliases()
    request = _build_request(adapter, target, source, method, evaluate, parameters, aliases)
    if request.output.repo_id is not None:
        raise RequestInvalid(
            "convert() does not publish: leave out output.repo_id.", pointer="/output/repo_id"
        )
    plan = plan_conversion(request)
    return run_locally(plan, Settings(), aliases.folders, _CallbackReporter(progress), out_dir)


def precheck(
    adapter: Reference,
    target: Reference,
    *,
    source: Reference | None = None,
    method: str = DEFAULT_METHOD,
    progress: ProgressCallback | None = None,
    **parameters: Any,
) -> ConversionResult:
    """Predict whether an adapter will transfer; nothing is converted. Arguments as for `convert`.

    The result's `verdict` and `reasons` say what was found; its `folder` is None.
    """
    aliases = FolderAliases()
    request = _build_request(adapter, target, source, method, None, parameters, aliases)
    plan = plan_conversion(request, "precheck")
    return run_locally(plan, Settings(), aliases.folders, _CallbackReporter(progress), None)


@dataclass(frozen=True, slots=True)
class _CallbackReporter(NullReporter):
    """Reports phases to a function of the caller's."""

    callback: ProgressCallback | None

    def update(self, phase: Phase, done: int = 0, total: int | None = None, unit: str | None = None) -> None:
        """Call it, where there is one."""
        if self.callback is not None:
            self.callback(phase.value, done, total)


def _build_request(
    adapter: Reference,
    target: Reference,
    source: Reference | None,
    method: str,
    evaluate: Evaluation | None,
    parameters: Mapping[str, Any],
    aliases: FolderAliases,
) -> ConversionRequest:
    """The request, with folders under aliases, since a request names repos and never paths."""
    if source is None and (folder := find_folder(str(adapter))) is not None:
        source = find_local_base(folder)
    objects = {name: parameters[name] for name in _OBJECTS if name in parameters}
    body: dict[str, Any] = {
        **objects,
        "adapter": parse_repo(aliases.to_reference(str(adapter)), field="adapter"),
        "target": parse_repo(aliases.to_reference(str(target)), field="target"),
        "method": {
            **{name: value for name, value in parameters.items() if name not in objects},
            "name": method,
        },
    }
    if source is not None:
        body["source"] = parse_repo(aliases.to_reference(str(source)), field="source")
    if isinstance(evaluate, str | Path):
        body["evaluate"] = read_evaluation(Path(evaluate))
    elif evaluate is not None:
        body["evaluate"] = dict(evaluate) if isinstance(evaluate, Mapping) else {"examples": list(evaluate)}
    return validate_request(body)
