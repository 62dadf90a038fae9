"""A look at an owner's models: what changed since the last one goes the same way as a webhook's news."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from core.jobs import Claim, JobStore, Seen
from core.releases.tasks import MAIN, ReconcileTask
from core.states import Phase
from workers.hub.port import HubPort
from workers.watch import Watch

# The Hub's clock and ours differ, so what changed shortly before the last look is looked at again. Everything
# is recorded once anyway.
OVERLAP = timedelta(minutes=10)


def look(claim: Claim, task: ReconcileTask, store: JobStore, hub: HubPort, watch: Watch) -> dict[str, Any]:
    """The job's result: how many models were looked at, and how many were news. Raises what a hub raises."""
    mine = store.subscriptions_to(claim.tenant_id, task.owner)
    begun = store.clock()
    looked = found = 0
    for owner in sorted({one.spec.owner_as_written for one in mine}):
        since = min(one.looked_at for one in mine) - OVERLAP
        for model in hub.models_of(owner):
            if model.modified_at < since:
                break
            looked += 1
            watch.step(Phase.READING, looked, None, "models")
            seen = Seen(model.repo_id, MAIN, model.sha, "poll", created_at=model.created_at)
            found += store.see(seen, claim.tenant_id) == "recorded"
    store.looked(claim, task.owner, [one.id for one in mine], begun)
    return {"models": looked, "releases": found}
