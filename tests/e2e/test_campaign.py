"""A base is released on the stand-in Hub, and the adapters of two tenants follow, whatever dies meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import migrations
from benchmarks.processes import Process, api, environment, free_port, wait_ready, worker
from rebase.client.errors import ServiceError
from rebase.client.http import RebaseClient
from rebase.client.models import Campaign
from support.standin_hub import StandinHub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "hub" / "tiny"
SECRET = "a webhook's secret"
TASKS = (
    "sql-lora",
    "graph-lora-1",
    "json-lora-1",
    "letter-lora-1",
    "lisp-lora-1",
    "python-lora-1",
    "url-lora-1",
)
EACH = len(TASKS)  # adapters per tenant


def files_of(name: str) -> Path:
    folder = EXAMPLES / name
    return folder / "revisions" / (folder / "refs" / "main").read_text().strip()


@dataclass
class Deployment:
    """A Hub, a service with keys, and a worker that can be killed."""

    hub: StandinHub
    url: str
    home: Path
    env: dict[str, str]
    worker: Process
    clients: list[RebaseClient] = field(default_factory=list)

    def client(self, tenant: str) -> RebaseClient:
        """With a key, and a Hub token that may write to the tenant's own organisation alone, as an operator
        gives both."""
        made = self.command("keys", "create", "--tenant", tenant, "--json")
        token = self.hub.add_token(f"hf_of_{tenant}", user=f"{tenant}-bot", orgs={tenant: "write"})
        self.command("tenants", "token", "set", tenant, typed=token)
        client = RebaseClient(self.url, json.loads(made)["key"])
        self.clients.append(client)
        return client

    def command(self, *arguments: str, typed: str = "") -> str:
        """`rebase …` beside the service."""
        command = [sys.executable, "-m", "rebase", *arguments]
        done = subprocess.run(
            command, env=self.env, cwd=self.home, capture_output=True, check=True, input=typed, text=True
        )
        return done.stdout

    def log(self) -> str:
        """What API and worker said, for a failing test."""
        return "\n".join((self.home / f"{name}.log").read_text()[-4000:] for name in ("api", "worker"))


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    with StandinHub(tmp_path / "standin") as hub:
        env = environment(
            tmp_path,
            HF_ENDPOINT=hub.url,
            HF_HOME=str(tmp_path / "hf"),
            HF_HUB_DISABLE_XET="1",
            REBASE_WEBHOOK_SECRET=SECRET,
            REBASE_AUTH="keys",
            REBASE_RECONCILE_S="2",
            REBASE_LEASE_S="3",
            REBASE_HEARTBEAT_S="0.5",
            REBASE_SWEEP_S="0.5",
            REBASE_MAX_ATTEMPTS="5",
            REBASE_RETRY_BASE_S="0.5",
            REBASE_LOG_FORMAT="json",
        )
        migrations.upgrade(f"sqlite:///{tmp_path / 'rebase.db'}")
        port = free_port()
        service, hands = api(tmp_path, env, port), worker(tmp_path, env)
        service.start()
        try:
            wait_ready(f"http://127.0.0.1:{port}")
            hands.start()
            made = Deployment(hub, f"http://127.0.0.1:{port}", tmp_path, env, hands)
            yield made
            for client in made.clients:
                client.close()
        finally:
            hands.kill()
            service.stop()


def until(met: Callable[[], bool], deployment: Deployment, patience_s: float = 400) -> None:
    deadline = time.monotonic() + patience_s
    while not met():
        assert time.monotonic() < deadline, deployment.log()
        time.sleep(0.1)


def only(client: RebaseClient) -> Campaign | None:
    found = list(client.list_campaigns())
    assert len(found) <= 1
    return found[0] if found else None


def test_adapters_of_two_tenants_follow_a_release_through_kills_and_doubled_deliveries(
    deployment: Deployment,
) -> None:
    hub = deployment.hub
    hub.add_repo("tiny/harbor-1", files_of("harbor-1"))
    for tenant in ("acme", "beta"):
        for number in range(EACH):
            hub.add_repo(f"{tenant}/lora-{number}", files_of(f"harbor-{TASKS[number]}"))
    clients = {tenant: deployment.client(tenant) for tenant in ("acme", "beta")}
    for tenant, client in clients.items():
        adapters = [{"repo_id": f"{tenant}/lora-{number}"} for number in range(EACH)]
        if tenant == "beta":
            adapters.append({"repo_id": "beta/missing"})
        client.subscribe({"bases": "tiny/harbor-*", "adapters": adapters, "method": "copy"})
    hub.webhooks.repeat = 3
    hub.webhooks.add(f"{deployment.url}/webhooks/hub", owner="tiny", secret=SECRET)

    hub.add_repo("tiny/harbor-2", files_of("harbor-2"))  # a new repo, then a push: each is told three times

    def moved() -> int:
        tallies = [(only(client) or None) for client in clients.values()]
        return sum(
            t.stages["convert"].states.get("succeeded", 0) for t in tallies if t and "convert" in t.stages
        )

    for reached in (2, EACH):
        until(lambda reached=reached: moved() >= reached, deployment)  # type: ignore[misc]
        deployment.worker.kill()
        deployment.worker.start()
    until(
        lambda: all((c := only(client)) and c.state == "finished" for client in clients.values()), deployment
    )

    until(lambda: len(hub.webhooks.deliveries) == 6, deployment)
    assert {delivery.status for delivery in hub.webhooks.deliveries} == {202}
    reports = {tenant: client.get_campaign_report(only(client).id) for tenant, client in clients.items()}  # type: ignore[union-attr]
    assert reports["acme"].counts == {"moved": EACH}, deployment.log()
    assert reports["beta"].counts == {"failed": 1, "moved": EACH}, deployment.log()
    for tenant, report in reports.items():
        assert report.campaign.base == "tiny/harbor-2"
        assert report.campaign.revision == hub.store.repos["tiny/harbor-2"].refs["main"]
        for row in (row for row in report.adapters if row.output is not None):
            assert row.output is not None
            assert row.output.repo_id.startswith(f"{tenant}/")
            commits = hub.store.repos[row.output.repo_id].history(row.output.commit)
            assert [f"Rebase-Job: {row.job_id}" in commit.message for commit in commits] == [True, False]
            assert hub.store.repos[row.output.repo_id].refs == {"main": row.output.commit}
    (failed,) = [row for row in reports["beta"].adapters if row.outcome == "failed"]
    assert (failed.adapter, failed.error.code) == ("beta/missing", "repo_not_found")  # type: ignore[union-attr]

    hub.add_repo("beta/missing", files_of("harbor-sql-lora"))
    beta = clients["beta"]
    beta.control_campaign(reports["beta"].campaign.id, "retry")
    until(lambda: beta.get_campaign(reports["beta"].campaign.id).state == "finished", deployment)
    assert beta.get_campaign_report(reports["beta"].campaign.id).counts == {"moved": EACH + 1}
    with pytest.raises(ServiceError, match="no such campaign"):
        beta.get_campaign(reports["acme"].campaign.id)
    assert "lora-3" in clients["acme"].get_campaign_report_html(reports["acme"].campaign.id)


def test_a_look_finds_a_release_that_no_webhook_told(deployment: Deployment) -> None:
    hub = deployment.hub
    for name in ("harbor-1", "harbor-sql-lora"):
        hub.add_repo(f"tiny/{name}", files_of(name))
    hub.add_repo("acme/lora", files_of("harbor-sql-lora"))
    client = deployment.client("acme")
    client.subscribe(
        {"successors_of": "tiny/harbor-1", "adapters": [{"repo_id": "acme/lora"}], "dry_run": True}
    )

    hub.add_repo("tiny/harbor-2", files_of("harbor-2"))

    until(lambda: (c := only(client)) is not None and c.state == "awaiting_approval", deployment, 120)
    campaign = only(client)
    assert campaign is not None
    assert "acme/lora-harbor-2" not in hub.store.repos
    client.control_campaign(campaign.id, "approve")
    done = client.wait_for_campaign(campaign.id)
    assert done.state == "finished"
    assert "acme/lora-harbor-2" in hub.store.repos
