"""A release for one subscription: the Hub is read anew, guards speak, and a campaign begins or does not.

The job's result says what came of it: `waiting`, `refused`, `open`, `handled` (there is a campaign already),
`unsubscribed`, `paused`, or that there was nothing to convert to: `unreadable` (for this token no such repo
exists), `adapter`.
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
from rebase.logging import get_logger
from rebase.schemas.guards import GuardViolation, ModelFacts, find_violations
from rebase.schemas.states import CampaignDbState, Phase
from rebase.schemas.subscriptions import ReleaseTask, SubscriptionRequest, fill_template
from rebase.store.job_store import JobStore
from rebase.store.records import Claim, Decision, SubscriptionRecord
from transfer.weights import ModelWeights
from workers.hub.port import HubPort, RepoInfo
from workers.resolve import REPORT_FILE
from workers.tensors.model_reader import missing_shards, open_model
from workers.watch import Watch

log = get_logger(__name__)

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_UNREADABLE = (RepoNotFound, RevisionNotFound, HubUnauthorized)


def follow(claim: Claim, task: ReleaseTask, store: JobStore, hub: HubPort, watch: Watch) -> dict[str, Any]:
    """The job's result. Raises what a hub raises when it is not available, and LeaseLost."""
    subscription = store.find_subscription(claim, task.subscription_id)
    if subscription is None:
        return _told("unsubscribed")
    if subscription.paused:
        store.unmark_release(claim, task)
        return _told("paused")
    watch.step(Phase.RESOLVING)
    try:
        hub.check_read(task.repo_id)
        info = hub.info(task.repo_id)
    except RepoGated as exc:
        decision = _refused(task.sha, [GuardViolation(code=exc.code, message=exc.message)])
        return _decide(claim, store, subscription, task, decision)
    except _UNREADABLE as exc:
        # Nothing is recorded: whoever may not read the repo is not told that somebody announced it.
        # When it is opened, or the token replaced, a look is shown it and takes it up.
        store.unmark_release(claim, task)
        return _told("unreadable", code=exc.code)
    if REPORT_FILE in info.repo.files or ("adapter_config.json" in info.repo.files and not _has_config(info)):
        return _told("adapter")
    watch.step(Phase.READING)
    return _decide(claim, store, subscription, task, judge(hub, info, subscription))


def judge(hub: HubPort, info: RepoInfo, subscription: SubscriptionRecord) -> Decision:
    """What the release is to this subscription. Raises only what passes by itself, such as HubUnavailable."""
    spec, sha = subscription.spec, info.repo.sha
    try:
        missing = _missing(hub, info)
        if missing is not None:
            waits = GuardViolation(
                code="incomplete", message=f"The repo holds no {missing} yet; a push may bring it."
            )
            return Decision(CampaignDbState.WAITING, sha, [waits.model_dump()])
        facts = facts_of(hub, info)
    except (RebaseError, TransferError) as exc:
        error = to_public_error(exc)
        if error.retryable:
            raise
        return _refused(sha, [GuardViolation(code=error.code, message=error.message)])
    against = find_violations(spec.guards, facts, subscription.since)
    if against:
        return _refused(sha, against, facts)
    outputs, left_out = places(hub, spec, info.repo.repo_id)
    if not outputs:
        nowhere = GuardViolation(code="no_outputs", message="No adapter has a place to go.")
        return _refused(sha, [nowhere], facts, left_out)
    return Decision(CampaignDbState.OPEN, sha, [], facts.model_dump(mode="json"), outputs, left_out)


def facts_of(hub: HubPort, info: RepoInfo) -> ModelFacts:
    """Sizes by the headers of all shards, the rest by the card. Raises what readers raise, also for a family
    of models that cannot be a target."""
    config, reader, _ = open_model(hub, info.repo)
    ModelWeights(config, reader)
    infos = reader.infos()
    model_type = config.get("model_type")
    return ModelFacts(
        repo_id=info.repo.repo_id,
        sha=info.repo.sha,
        created_at=info.created_at,
        bytes=sum(size for path, size in info.repo.files.items() if path.endswith(".safetensors")),
        parameters=sum(prod(tensor.shape) for tensor in infos.values()),
        model_type=model_type[:100] if isinstance(model_type, str) else None,
        licences=info.licences,
        tags=info.tags,
        content=info.content,
    )


def places(
    hub: HubPort, spec: SubscriptionRequest, target: str
) -> tuple[dict[int, str], list[dict[str, Any]]]:
    """(position → output repo made legal on this hub, adapters that are left out and why)."""
    outputs: dict[int, str] = {}
    left_out: list[dict[str, Any]] = []
    for position, adapter in enumerate(spec.adapters):
        why: GuardViolation | None = None
        name = ""
        try:
            name = hub.default_output(fill_template(spec.output.repo_id, adapter.repo_id, target))
        except RequestInvalid as exc:
            why = GuardViolation(code="output_name", message=exc.message)
        if why is None and name.casefold() in {taken.casefold() for taken in outputs.values()}:
            why = GuardViolation(code="output_name", message=f"'{name}' is another adapter's output already.")
        if why is None and len(outputs) >= spec.guards.max_jobs:
            why = GuardViolation(
                code="max_jobs", message=f"The budget is {spec.guards.max_jobs} jobs per release."
            )
        if why is None:
            outputs[position] = name
        else:
            left_out.append({"position": position, **why.model_dump()})
    return outputs, left_out


def _has_config(info: RepoInfo) -> bool:
    return _CONFIG in info.repo.files


def _missing(hub: HubPort, info: RepoInfo) -> str | None:
    """A file that a model needs and this one does not have: repos begin empty, and shards come in several
    pushes, their index often first."""
    if not _has_config(info):
        return _CONFIG
    if _WEIGHTS in info.repo.files:
        return None
    if _INDEX not in info.repo.files:
        return _WEIGHTS
    return next(iter(missing_shards(hub, info.repo)), None)


def _refused(
    sha: str,
    reasons: list[GuardViolation],
    facts: ModelFacts | None = None,
    left_out: list[dict[str, Any]] | None = None,
) -> Decision:
    told = [reason.model_dump() for reason in reasons]
    known = facts.model_dump(mode="json") if facts is not None else None
    return Decision(CampaignDbState.REFUSED, sha, told, known, left_out=left_out or ())


def _decide(
    claim: Claim, store: JobStore, subscription: SubscriptionRecord, task: ReleaseTask, decision: Decision
) -> dict[str, Any]:
    decided = store.record_decision(claim, subscription, task.repo_id, decision)
    return _told(decided.outcome, campaign=decided.campaign_id)


def _told(outcome: str, **more: Any) -> dict[str, Any]:
    log.info("release", outcome=outcome, **more)
    return {"outcome": outcome, **more}
