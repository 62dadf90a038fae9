"""Handles a release for one subscription: reads the repo, checks the guards, and may open a campaign.

The outcome is one of `waiting`, `refused`, `open`, `handled` (a campaign already exists), `unsubscribed`,
`paused`, or, if there is no model to convert to, `unreadable` (the token cannot see the repo) or `adapter`.
"""

from __future__ import annotations

from math import prod
from typing import Any

from rebase.errors import (
    HubUnauthorized,
    RebaseError,
    RepoGated,
    RepoNotFound,
    RequestInvalid,
    RevisionNotFound,
    TransferError,
    to_public_error,
)
from rebase.hub.base import Hub, RepoInfo
from rebase.logging import get_logger
from rebase.models.model_reader import find_missing_shards, open_model
from rebase.models.weights import ModelWeights
from rebase.report.progress import ProgressReporter
from rebase.report.schema import REPORT_FILE
from rebase.schemas.guards import GuardViolation, ModelFacts, find_violations
from rebase.schemas.states import CampaignDbState, Phase
from rebase.schemas.subscriptions import ReleaseTask, SubscriptionRequest, fill_template
from rebase.store.records import Claim, Decision, SubscriptionRecord
from rebase.store.store import Store

log = get_logger(__name__)

_CONFIG_FILE, _WEIGHTS_FILE, _INDEX_FILE = "config.json", "model.safetensors", "model.safetensors.index.json"
_UNREADABLE_ERRORS = (RepoNotFound, RevisionNotFound, HubUnauthorized)


def run_release_job(
    claim: Claim, task: ReleaseTask, store: Store, hub: Hub, progress: ProgressReporter
) -> dict[str, Any]:
    """Returns the job's result. Raises LeaseLost, and hub errors if the hub is unavailable."""
    subscription = store.decisions.find_subscription(claim, task.subscription_id)
    if subscription is None:
        return _build_result("unsubscribed")
    if subscription.paused:
        store.decisions.unmark_release(claim, task)
        return _build_result("paused")
    progress.update(Phase.RESOLVING)
    try:
        hub.check_read(task.repo_id)
        info = hub.get_info(task.repo_id)
    except RepoGated as exc:
        decision = _build_refusal(task.sha, [GuardViolation(code=exc.code, message=exc.message)])
        return _record_decision(claim, store, subscription, task, decision)
    except _UNREADABLE_ERRORS as exc:
        # Nothing is recorded: a tenant that cannot read the repo must not learn that it was announced.
        # Once the repo is readable, polling picks it up.
        store.decisions.unmark_release(claim, task)
        return _build_result("unreadable", code=exc.code)
    if REPORT_FILE in info.repo.files or ("adapter_config.json" in info.repo.files and not _has_config(info)):
        return _build_result("adapter")
    progress.update(Phase.READING)
    return _record_decision(claim, store, subscription, task, evaluate_release(hub, info, subscription))


def evaluate_release(hub: Hub, info: RepoInfo, subscription: SubscriptionRecord) -> Decision:
    """Decide about the release for this subscription. Raises only transient errors, such as
    HubUnavailable."""
    spec, sha = subscription.spec, info.repo.sha
    try:
        missing = _find_missing_file(hub, info)
        if missing is not None:
            incomplete = GuardViolation(
                code="incomplete", message=f"The repo has no {missing} yet; a later push may add it."
            )
            return Decision(CampaignDbState.WAITING, sha, [incomplete.model_dump()])
        facts = collect_facts(hub, info)
    except (RebaseError, TransferError) as exc:
        error = to_public_error(exc)
        if error.retryable:
            raise
        return _build_refusal(sha, [GuardViolation(code=error.code, message=error.message)])
    guard_violations = find_violations(spec.guards, facts, subscription.since)
    if guard_violations:
        return _build_refusal(sha, guard_violations, facts)
    outputs, left_out = plan_outputs(hub, spec, info.repo.repo_id)
    if not outputs:
        no_outputs = GuardViolation(code="no_outputs", message="No adapter has a valid output.")
        return _build_refusal(sha, [no_outputs], facts, left_out)
    return Decision(CampaignDbState.OPEN, sha, [], facts.model_dump(mode="json"), outputs, left_out)


def collect_facts(hub: Hub, info: RepoInfo) -> ModelFacts:
    """Sizes from the headers of all shards, the rest from the repo's metadata. Raises reader errors, also for
    architectures that cannot be a target."""
    config, reader, _ = open_model(hub, info.repo)
    ModelWeights(config, reader)
    tensor_infos = reader.infos()
    model_type = config.get("model_type")
    return ModelFacts(
        repo_id=info.repo.repo_id,
        sha=info.repo.sha,
        created_at=info.created_at,
        bytes=sum(size for path, size in info.repo.files.items() if path.endswith(".safetensors")),
        parameters=sum(prod(tensor.shape) for tensor in tensor_infos.values()),
        model_type=model_type[:100] if isinstance(model_type, str) else None,
        licences=info.licenses,
        tags=info.tags,
        content=info.model_digest,
    )


def plan_outputs(
    hub: Hub, spec: SubscriptionRequest, target: str
) -> tuple[dict[int, str], list[dict[str, Any]]]:
    """(position → output repo with a name valid on this hub, skipped adapters with reasons)."""
    outputs: dict[int, str] = {}
    left_out: list[dict[str, Any]] = []
    for position, adapter in enumerate(spec.adapters):
        violation: GuardViolation | None = None
        name = ""
        try:
            name = hub.make_output_name(fill_template(spec.output.repo_id, adapter.output_stem, target))
        except RequestInvalid as exc:
            violation = GuardViolation(code="output_name", message=exc.message)
        if violation is None and name.casefold() in {output.casefold() for output in outputs.values()}:
            violation = GuardViolation(
                code="output_name", message=f"'{name}' is already another adapter's output."
            )
        if violation is None and len(outputs) >= spec.guards.max_jobs:
            violation = GuardViolation(
                code="max_jobs", message=f"The limit is {spec.guards.max_jobs} jobs per release."
            )
        if violation is None:
            outputs[position] = name
        else:
            left_out.append({"position": position, **violation.model_dump()})
    return outputs, left_out


def _has_config(info: RepoInfo) -> bool:
    return _CONFIG_FILE in info.repo.files


def _find_missing_file(hub: Hub, info: RepoInfo) -> str | None:
    """A required file that the repo lacks, or None. Repos start empty, and shards arrive in several pushes,
    often after their index."""
    if not _has_config(info):
        return _CONFIG_FILE
    if _WEIGHTS_FILE in info.repo.files:
        return None
    if _INDEX_FILE not in info.repo.files:
        return _WEIGHTS_FILE
    return next(iter(find_missing_shards(hub, info.repo)), None)


def _build_refusal(
    sha: str,
    reasons: list[GuardViolation],
    facts: ModelFacts | None = None,
    left_out: list[dict[str, Any]] | None = None,
) -> Decision:
    reason_rows = [reason.model_dump() for reason in reasons]
    facts_row = facts.model_dump(mode="json") if facts is not None else None
    return Decision(CampaignDbState.REFUSED, sha, reason_rows, facts_row, left_out=left_out or ())


def _record_decision(
    claim: Claim, store: Store, subscription: SubscriptionRecord, task: ReleaseTask, decision: Decision
) -> dict[str, Any]:
    result = store.decisions.record(claim, subscription, task.repo_id, decision)
    return _build_result(result.outcome, campaign=result.campaign_id)


def _build_result(outcome: str, **details: Any) -> dict[str, Any]:
    log.info("release", outcome=outcome, **details)
    return {"outcome": outcome, **details}
