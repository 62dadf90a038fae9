"""Recording a worker's decision on a release: one campaign with all of its jobs, in one transaction.

The work may be repeated (a killed worker, a duplicate notification, a second job for the same repo). So the
subscription's row is locked first, existing campaigns are checked, and unique keys rule out duplicates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from rebase.errors import Cancelled
from rebase.schemas.guards import GuardViolation
from rebase.schemas.repos import RepoRef
from rebase.schemas.states import CampaignDbState, JobState
from rebase.schemas.subscriptions import ReleaseTask, Stage, SubscriptionRequest, build_conversion_request
from rebase.store.job_events import CANCELLED_ERROR
from rebase.store.job_queue import lock_claimed_job
from rebase.store.job_submission import build_job_record, insert_jobs
from rebase.store.limits import load_limits
from rebase.store.quota import load_quota
from rebase.store.records import Claim, Decision, DecisionOutcome, DecisionResult, SubscriptionRecord
from rebase.store.repository import Repository, new_id
from rebase.store.subscriptions import find_subscriptions_to_owner
from rebase.store.tables.releases import Campaign, CampaignJob, Release, ReleaseMatch, Subscription

_COLUMNS = [getattr(Subscription, name) for name in SubscriptionRecord.__slots__]
_UNDECIDED_STATES = frozenset({CampaignDbState.WAITING.value, CampaignDbState.REFUSED.value})
_OUTCOMES: dict[CampaignDbState, DecisionOutcome] = {
    CampaignDbState.WAITING: "waiting",
    CampaignDbState.REFUSED: "refused",
    CampaignDbState.OPEN: "open",
}


class ReleaseDecisions(Repository):
    """For workers: the subscription of a release job, and the decision on the release."""

    def find_subscription(self, claim: Claim, subscription_id: str) -> SubscriptionRecord | None:
        """The subscription that the job belongs to; None if it was deleted or belongs to another tenant."""
        query = select(*_COLUMNS).where(
            Subscription.id == subscription_id, Subscription.tenant_id == claim.tenant_id
        )
        with self.db.read() as connection:
            row = connection.execute(query).one_or_none()
        return SubscriptionRecord(*row) if row is not None else None

    def list_subscriptions_to_owner(self, tenant_id: str, owner: str) -> list[SubscriptionRecord]:
        """The tenant's unpaused subscriptions to an owner's releases."""
        with self.db.read() as connection:
            return find_subscriptions_to_owner(connection, owner, tenant_id)

    def record(
        self, claim: Claim, subscription: SubscriptionRecord, repo_id: str, decision: Decision
    ) -> DecisionResult:
        """Create or update the campaign for a release. Raises LeaseLost, and Cancelled for a job that was to
        be stopped because its tenant is being deleted.

        A base that already has a campaign is left alone, unless the subscription converts updates and the
        model's content has changed. A waiting or refused campaign is decided again.
        """
        now = self.clock()
        with self.db.write() as connection:
            if lock_claimed_job(connection, claim, {JobState.RUNNING}).cancel_requested:
                raise Cancelled(CANCELLED_ERROR.message)
            subscription_query = select(Subscription.id).where(Subscription.id == subscription.id)
            if connection.scalar(subscription_query.with_for_update(key_share=True)) is None:
                return DecisionResult(None, "unsubscribed")
            newest = _lock_newest_campaign(connection, subscription.id, repo_id)
            if newest is not None and _is_handled(newest, subscription.spec, decision):
                return DecisionResult(newest.id, "handled")
            is_redecided = newest is not None and newest.state in _UNDECIDED_STATES
            campaign_id = newest.id if newest is not None and is_redecided else new_id()
            decision = self._apply_quota(connection, claim.tenant_id, decision, now)
            values = _build_campaign_values(decision, subscription, now)
            if is_redecided:
                connection.execute(update(Campaign).where(Campaign.id == campaign_id).values(values))
            else:
                values |= {"id": campaign_id, "tenant_id": subscription.tenant_id, "created_at": now}
                values |= {"subscription_id": subscription.id, "repo_id": repo_id}
                values |= {"number": newest.number + 1 if newest is not None else 1}
                connection.execute(insert(Campaign).values(values))
            if decision.state is CampaignDbState.OPEN:
                stage: Stage = "precheck" if subscription.spec.dry_run else "convert"
                target = RepoRef(repo_id=repo_id, revision=decision.sha)
                tenant_and_spec = (subscription.tenant_id, subscription.spec)
                add_campaign_jobs(
                    self, connection, *tenant_and_spec, campaign_id, target, stage, decision.outputs
                )
        return DecisionResult(campaign_id, _OUTCOMES[decision.state])

    def unmark_release(self, claim: Claim, task: ReleaseTask) -> None:
        """Forget that this subscription has seen the release, so that the next poll finds it again."""
        of_release = select(Release.id).where(Release.repo_id == task.repo_id, Release.sha == task.sha)
        with self.db.write() as connection:
            lock_claimed_job(connection, claim, {JobState.RUNNING})
            connection.execute(
                delete(ReleaseMatch).where(
                    ReleaseMatch.subscription_id == task.subscription_id,
                    ReleaseMatch.release_id.in_(of_release),
                )
            )

    def _apply_quota(
        self, connection: Connection, tenant_id: str, decision: Decision, now: datetime
    ) -> Decision:
        """Limit the adapters to the tenant's quota; the others are left out, with the reason. If none is
        allowed, the release is refused, so that it can be checked again later."""
        if decision.state is not CampaignDbState.OPEN:
            return decision
        quota = load_quota(connection, tenant_id, load_limits(connection, tenant_id, self.limits), now)
        if quota.error is None or len(decision.outputs) <= quota.remaining:
            return decision
        accepted = sorted(decision.outputs)[: max(0, int(quota.remaining))]
        violation = GuardViolation(code=quota.error.code, message=quota.error.message).model_dump()
        over_quota = [
            {"position": position, **violation} for position in sorted(set(decision.outputs) - set(accepted))
        ]
        if not accepted:
            return replace(decision, state=CampaignDbState.REFUSED, reasons=[violation], outputs={})
        return replace(
            decision,
            outputs={position: decision.outputs[position] for position in accepted},
            left_out=[*decision.left_out, *over_quota],
        )


def add_campaign_jobs(
    repository: Repository,
    connection: Connection,
    tenant_id: str,
    spec: SubscriptionRequest,
    campaign_id: str,
    target: RepoRef,
    stage: Stage,
    outputs: Mapping[int, str],
) -> None:
    """Queue one job per adapter in the caller's transaction. `outputs`: position → output repo."""
    positions = sorted(outputs)
    requests = [
        build_conversion_request(spec, spec.adapters[position], target, stage, outputs[position])
        for position in positions
    ]
    records = [build_job_record(repository, tenant_id, stage, request) for request in requests]
    if not records:
        return
    insert_jobs(connection, records)
    rows = [
        {"campaign_id": campaign_id, "stage": stage, "position": position, "job_id": record.id}
        for position, record in zip(positions, records, strict=True)
    ]
    connection.execute(insert(CampaignJob), rows)


def _lock_newest_campaign(connection: Connection, subscription_id: str, repo_id: str) -> Any:
    """The newest campaign for a base: id, number, state, sha, decision; None if there is none."""
    query = (
        select(Campaign.id, Campaign.number, Campaign.state, Campaign.sha, Campaign.decision)
        .where(Campaign.subscription_id == subscription_id, Campaign.repo_id == repo_id)
        .order_by(Campaign.number.desc())
        .limit(1)
        .with_for_update()
    )
    return connection.execute(query).one_or_none()


def _is_handled(newest: Any, spec: SubscriptionRequest, decision: Decision) -> bool:
    """Whether the newest campaign for this base already covers this release."""
    if newest.state in _UNDECIDED_STATES:
        return False
    if not spec.on_update or newest.sha == decision.sha or decision.state is not CampaignDbState.OPEN:
        return True
    old_facts, new_facts = newest.decision.get("facts") or {}, decision.facts or {}
    return old_facts.get("content") == new_facts.get("content")


def _build_campaign_values(
    decision: Decision, subscription: SubscriptionRecord, now: datetime
) -> dict[str, Any]:
    decision_json = {
        "reasons": list(decision.reasons),
        "facts": decision.facts,
        "left_out": list(decision.left_out),
        "outputs": {str(position): output for position, output in decision.outputs.items()},
    }
    return {
        "sha": decision.sha,
        "state": decision.state.value,
        "request": subscription.request,
        "decision": decision_json,
        "dry_run": subscription.spec.dry_run,
        "updated_at": now,
    }
