"""Resolves names to commits: checks access, pins revisions and checks the output repo."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rebase.conversion.plan import ConversionPlan
from rebase.errors import FileMissing, MalformedAdapter, OutputExists, RequestInvalid, UnsafeFile
from rebase.evidence.inputs import PinnedInputs, require_distinct_bases
from rebase.hub.base import Hub, PinnedRepo, pin
from rebase.lora.tensors import TensorReader
from rebase.models.model_reader import open_adapter
from rebase.report.progress import ProgressReporter
from rebase.report.schema import REPORT_FILE
from rebase.schemas.conversions import OutputSpec
from rebase.schemas.repos import RepoRef, check_repo_id
from rebase.schemas.states import Phase

# A repo with only these files counts as empty: the Hub creates them itself.
_EMPTY_REPO_FILES = frozenset({".gitattributes", "README.md"})


@dataclass(frozen=True, slots=True)
class OutputTarget:
    """The output repo and its parent commit (None: the repo does not exist yet)."""

    repo_id: str
    parent: str | None


def choose_source_ref(
    source: RepoRef | None, adapter_config: dict[str, Any]
) -> tuple[RepoRef, tuple[str, ...]]:
    """The source base: the request's, or the one the adapter names, and a warning if the two differ.

    Raises MalformedAdapter if the adapter names no valid base.
    """
    declared_base = adapter_config.get("base_model_name_or_path")
    if source is not None:
        if isinstance(declared_base, str) and declared_base and declared_base != source.repo_id:
            warning = f"The adapter names '{declared_base[:200]}' as its base; '{source.repo_id}' was used."
            return source, (warning,)
        return source, ()
    if not isinstance(declared_base, str) or not declared_base:
        raise MalformedAdapter(
            "The adapter does not say which base it was trained on (base_model_name_or_path is empty).",
            hint="Set 'source'.",
            pointer="/source",
        )
    revision = adapter_config.get("revision")
    try:
        check_repo_id(declared_base)
        return RepoRef(
            repo_id=declared_base, revision=revision if isinstance(revision, str) and revision else "main"
        ), ()
    except ValueError as exc:
        raise MalformedAdapter(
            f"The adapter's base_model_name_or_path '{declared_base[:200]}' is not a Hub repo id.",
            hint="Set 'source' to the base.",
            pointer="/source",
        ) from exc


def choose_output_repo(hub: Hub, adapter: RepoRef, target: RepoRef, output: OutputSpec) -> str:
    """The output repo: the request's, or the default name made valid on this hub. Raises RequestInvalid."""
    if output.repo_id is not None:
        return output.repo_id
    owner, _, name = adapter.repo_id.rpartition("/")
    if not owner:
        raise RequestInvalid(
            "The adapter's repo has no owner, so the output has no default name.",
            hint="Set 'output.repo_id'.",
            pointer="/output/repo_id",
        )
    return hub.make_output_name(f"{owner}/{name}--{target.repo_id.split('/')[-1]}")


def check_output(
    hub: Hub, output: OutputSpec, pinned: PinnedInputs, repo_id: str, latest: PinnedRepo | None
) -> OutputTarget:
    """Check write access to the repo, on top of `latest`, before the work starts.

    Raises OutputForbidden or OutputExists.
    """
    hub.check_write(repo_id, create_pr=output.create_pr)
    if latest is not None and not output.create_pr and not _is_previous_output(hub, latest, pinned):
        raise OutputExists(
            f"'{repo_id}' already exists and is not an earlier conversion of this adapter.",
            hint=(
                "Choose another output.repo_id, or set output.create_pr to propose the change as a pull "
                "request."
            ),
            pointer="/output/repo_id",
        )
    return OutputTarget(repo_id, latest.sha if latest else None)


def _is_previous_output(hub: Hub, latest: PinnedRepo, pinned: PinnedInputs) -> bool:
    """Is the output empty, or our own earlier conversion of the same adapter to the same target?"""
    if set(latest.files) <= _EMPTY_REPO_FILES:
        return True
    try:
        previous_report = json.loads(hub.fetch(latest, REPORT_FILE).read_bytes())
        names = (previous_report["adapter"]["repo_id"], previous_report["target"]["repo_id"])
    except (FileMissing, UnsafeFile, ValueError, KeyError, TypeError):
        return False
    return names == (pinned.adapter.repo_id, pinned.target.repo_id)


def resolve_repos(
    plan: ConversionPlan, hub: Hub, progress: ProgressReporter
) -> tuple[PinnedInputs, dict[str, Any], TensorReader]:
    """Pin adapter, source and target. Reads the adapter's config, which may name the source."""
    progress.update(Phase.RESOLVING, 0, 3, "repos")
    adapter = pin(hub, plan.adapter, "/adapter")
    config, reader = open_adapter(hub, adapter)
    progress.update(Phase.RESOLVING, 1, 3, "repos")
    ref, warnings = choose_source_ref(plan.source, config)
    source = pin(hub, ref, "/source")
    if config.get("base_model_name_or_path") == source.repo_id:
        warnings = ()  # a folder's name differs between the request and the adapter
    progress.update(Phase.RESOLVING, 2, 3, "repos")
    target = pin(hub, plan.target, "/target")
    require_distinct_bases(source, target)
    return PinnedInputs(adapter, source, target, warnings), config, reader
