"""Polls an owner's models and records releases that no webhook announced."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from rebase.hub.base import Hub, ListedModel
from rebase.report.progress import ProgressReporter
from rebase.schemas.model_names import subscription_matches
from rebase.schemas.states import Phase
from rebase.schemas.subscriptions import MAIN_REF, ReconcileTask
from rebase.store.records import Claim, ReleaseEvent, SubscriptionRecord
from rebase.store.store import Store


def run_reconcile_job(
    claim: Claim, task: ReconcileTask, store: Store, hub: Hub, progress: ProgressReporter
) -> dict[str, Any]:
    """Returns the job's result: how many models were checked and how many releases recorded. Raises hub
    errors.

    Models unchanged since the last poll are checked too: a repo may have been made public, or become readable
    with a new token. The list is sorted by last change, and models last changed before a subscription's
    `since` cannot have been created after it, so it stops there.
    """
    subscriptions = store.decisions.list_subscriptions_to_owner(claim.tenant_id, task.owner)
    known = store.releases.list_known([one.id for one in subscriptions])
    started_at = store.clock()
    checked = recorded = 0
    for owner in sorted({one.spec.owner_as_written for one in subscriptions}):
        since = min(one.since for one in subscriptions)
        for model in hub.list_models(owner):
            if model.modified_at < since:
                break
            checked += 1
            progress.update(Phase.READING, checked, None, "models")
            if any(_is_new_release(one, model, known) for one in subscriptions):
                event = ReleaseEvent(model.repo_id, MAIN_REF, model.sha, "poll", created_at=model.created_at)
                recorded += store.releases.record(event, claim.tenant_id) == "recorded"
    store.releases.mark_polled(claim, task.owner, [one.id for one in subscriptions], started_at)
    return {"models": checked, "releases": recorded}


def _is_new_release(
    subscription: SubscriptionRecord, model: ListedModel, known: Container[tuple[str, str, str]]
) -> bool:
    if (subscription.id, model.repo_id, model.sha) in known or model.created_at < subscription.since:
        return False
    return subscription_matches(subscription.request, model.repo_id)
