"""What a worker that looked at a release makes of it: one campaign with all of its jobs, in one transaction.

However often the work is done again (a killed worker, a doubled bell, a second job for the same repo), the
subscription's row is locked first, what stands is looked at, and unique keys have the last word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from core.errors import Cancelled
from core.ids import new_id
from core.jobs.client_side import CANCELLED
from core.jobs.insert import insert_jobs
from core.jobs.records import Claim
from core.jobs.release_records import Decided, Decision, Outcome, SubscriptionRecord
from core.jobs.releases_side import ReleasesSide
from core.jobs.room import room_of
from core.jobs.subscriptions_side import subscriptions_to
from core.jobs.worker_side import hold
from core.limits import limits_of
from core.releases.guards import Reason
from core.releases.plan import Stage, request_for
from core.releases.spec import SubscriptionRequest
from core.releases.states import Stored
from core.releases.tasks import ReleaseTask
from core.repos import RepoRef
from core.states import JobState
from core.tables.releases import Campaign, CampaignJob, Release, ReleaseMatch, Subscription

_COLUMNS = [getattr(Subscription, name) for name in SubscriptionRecord.__slots__]
_AGAIN = frozenset({Stored.WAITING.value, Stored.REFUSED.value})
_OUTCOMES: dict[Stored, Outcome] = {
    Stored.WAITING: "waiting",
    Stored.REFUSED: "refused",
    Stored.OPEN: "open",
}


class DecisionsSide(ReleasesSide):
    """For workers: the subscription of a release job, and its decision."""

    def subscription_of(self, claim: Claim, subscription_id: str) -> SubscriptionRecord | None:
        """The subscription that the job works for; None when it was deleted meanwhile, or is another
        tenant's."""
        query = select(*_COLUMNS).where(
            Subscription.id == subscription_id, Subscription.tenant_id == claim.tenant_id
        )
        with self.db.read() as connection:
            row = connection.execute(query).one_or_none()
        return SubscriptionRecord(*row) if row is not None else None

    def subscriptions_to(self, tenant_id: str, owner: str) -> list[SubscriptionRecord]:
        """The tenant's subscriptions to an owner that are not paused."""
        with self.db.read() as connection:
            return subscriptions_to(connection, owner, tenant_id)

    def decide(
        self, claim: Claim, subscription: SubscriptionRecord, repo_id: str, decision: Decision
    ) -> Decided:
        """Begin a campaign, or say why there is none. Raises LeaseLost, and Cancelled for a job that was to
        stop: its tenant is being deleted.

        A base that was handled is left alone, unless the subscription converts updates and what the model
        computes with has changed. One that waited or was refused is decided anew.
        """
        now = self.clock()
        with self.db.write() as connection:
            if hold(connection, claim, {JobState.RUNNING}).cancel_requested:
                raise Cancelled(CANCELLED.message)
            locked = select(Subscription.id).where(Subscription.id == subscription.id)
            if connection.scalar(locked.with_for_update(key_share=True)) is None:
                return Decided(None, "unsubscribed")
            standing = _newest(connection, subscription.id, repo_id)
            if standing is not None and _is_handled(standing, subscription.spec, decision):
                return Decided(standing.id, "handled")
            again = standing is not None and standing.state in _AGAIN
            campaign_id = standing.id if standing is not None and again else new_id()
            decision = self._within_limits(connection, claim.tenant_id, decision, now)
            values = _values(decision, subscription, now)
            if again:
                connection.execute(update(Campaign).where(Campaign.id == campaign_id).values(values))
            else:
                values |= {"id": campaign_id, "tenant_id": subscription.tenant_id, "created_at": now}
                values |= {"subscription_id": subscription.id, "repo_id": repo_id}
                values |= {"number": standing.number + 1 if standing is not None else 1}
                connection.execute(insert(Campaign).values(values))
            if decision.state is Stored.OPEN:
                stage: Stage = "precheck" if subscription.spec.dry_run else "convert"
                target = RepoRef(repo_id=repo_id, revision=decision.sha)
                whose = (subscription.tenant_id, subscription.spec)
                self._add_jobs(connection, *whose, campaign_id, target, stage, decision.outputs)
        return Decided(campaign_id, _OUTCOMES[decision.state])

    def forget(self, claim: Claim, task: ReleaseTask) -> None:
        """As if the release had not been seen by this subscription: the next look finds it again."""
        of_release = select(Release.id).where(Release.repo_id == task.repo_id, Release.sha == task.sha)
        with self.db.write() as connection:
            hold(connection, claim, {JobState.RUNNING})
            connection.execute(
                delete(ReleaseMatch).where(
                    ReleaseMatch.subscription_id == task.subscription_id,
                    ReleaseMatch.release_id.in_(of_release),
                )
            )

    def _within_limits(
        self, connection: Connection, tenant_id: str, decision: Decision, now: datetime
    ) -> Decision:
        """With as many adapters as the tenant's limits let in; the others are left out, with the reason.
        When none gets in, the release is refused, so that it can be looked at again when there is room."""
        if decision.state is not Stored.OPEN:
            return decision
        room = room_of(connection, tenant_id, limits_of(connection, tenant_id, self.limits), now)
        if room.refusal is None or len(decision.outputs) <= room.left:
            return decision
        fits = sorted(decision.outputs)[: max(0, int(room.left))]
        why = Reason(code=room.refusal.code, message=room.refusal.message).model_dump()
        beyond = [{"position": place, **why} for place in sorted(set(decision.outputs) - set(fits))]
        if not fits:
            return replace(decision, state=Stored.REFUSED, reasons=[why], outputs={})
        return replace(
            decision,
            outputs={place: decision.outputs[place] for place in fits},
            left_out=[*decision.left_out, *beyond],
        )

    def _add_jobs(
        self,
        connection: Connection,
        tenant_id: str,
        spec: SubscriptionRequest,
        campaign_id: str,
        target: RepoRef,
        stage: Stage,
        outputs: Mapping[int, str],
    ) -> None:
        """Queue one job per adapter, in the caller's transaction. `outputs`: position → output repo."""
        positions = sorted(outputs)
        requests = [
            request_for(spec, spec.adapters[place], target, stage, outputs[place]) for place in positions
        ]
        records = [self._new_record(tenant_id, stage, request) for request in requests]
        if not records:
            return
        insert_jobs(connection, records)
        rows = [
            {"campaign_id": campaign_id, "stage": stage, "position": position, "job_id": record.id}
            for position, record in zip(positions, records, strict=True)
        ]
        connection.execute(insert(CampaignJob), rows)


def _newest(connection: Connection, subscription_id: str, repo_id: str) -> Any:
    """The newest campaign for a base: id, number, state, sha, decision; None: there is none."""
    query = (
        select(Campaign.id, Campaign.number, Campaign.state, Campaign.sha, Campaign.decision)
        .where(Campaign.subscription_id == subscription_id, Campaign.repo_id == repo_id)
        .order_by(Campaign.number.desc())
        .limit(1)
        .with_for_update()
    )
    return connection.execute(query).one_or_none()


def _is_handled(standing: Any, spec: SubscriptionRequest, decision: Decision) -> bool:
    """Does the newest campaign for this base settle this release too?"""
    if standing.state in _AGAIN:
        return False
    if not spec.on_update or standing.sha == decision.sha or decision.state is not Stored.OPEN:
        return True
    before, now = standing.decision.get("facts") or {}, decision.facts or {}
    return before.get("content") == now.get("content")


def _values(decision: Decision, subscription: SubscriptionRecord, now: datetime) -> dict[str, Any]:
    told = {
        "reasons": list(decision.reasons),
        "facts": decision.facts,
        "left_out": list(decision.left_out),
        "outputs": {str(position): output for position, output in decision.outputs.items()},
    }
    return {
        "sha": decision.sha,
        "state": decision.state.value,
        "request": subscription.request,
        "decision": told,
        "dry_run": subscription.spec.dry_run,
        "updated_at": now,
    }
