"""Jobs of kind `release` and `reconcile`, run as a worker runs them, on a hub over HTTP and on a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import select

from rebase.cache.factor_cache import FactorCache
from rebase.hub.base import Hub
from rebase.hub.local import LocalHub
from rebase.hub.remote import RemoteHub
from rebase.runtime import Runtime
from rebase.schemas.campaigns import CampaignListOut
from rebase.settings import Settings
from rebase.store.database import Database
from rebase.store.records import CampaignRecord
from rebase.store.store import Store
from rebase.store.tables.base import DEFAULT_TENANT
from rebase.store.tables.jobs import Job
from support.campaigns import a_subscription, seen
from support.standin_hub import StandinHub
from workers.runner import WorkerContext, run_job

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "hub" / "tiny"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
LORA = {"repo_id": "tiny/harbor-sql-lora"}


def files_of(name: str) -> Path:
    """The files of a bundled repo."""
    folder = EXAMPLES / name
    return folder / "revisions" / (folder / "refs" / "main").read_text().strip()


TOKEN = "hf_tiny"


@dataclass
class Office:
    """A hub, a store, a worker, and a way to put repos onto the hub that does not go through the port."""

    hub: Hub
    store: Store
    desk: WorkerContext
    add: Callable[[str, Path], object]
    server: StandinHub | None = None

    def subscribe(self, **changes: Any) -> str:
        asked = {"bases": "tiny/harbor-*", "adapters": [LORA], **changes}
        return self.store.subscriptions.create(DEFAULT_TENANT, a_subscription(**asked))[0].id

    def work(self, kind: str = "release") -> list[dict[str, Any]]:
        """Run every waiting job of a kind; the results of those that ran."""
        with self.store.db.read() as connection:
            ids = connection.scalars(
                select(Job.id).where(Job.kind == kind, Job.state == "queued").order_by(Job.id)
            ).all()
        for job_id in ids:
            run_job(job_id, self.desk)
        with self.store.db.read() as connection:
            rows = connection.execute(select(Job.result, Job.error).where(Job.id.in_(ids)).order_by(Job.id))
            return [row.result or row.error for row in rows]

    def release(self, name: str = "harbor-2", sha: str = "") -> dict[str, Any]:
        """Announce a repo and work on it; the job's result."""
        assert self.store.releases.record(seen(sha or f"announced {name}", f"tiny/{name}")) == "recorded"
        (result,) = self.work()
        return result

    def campaign(self) -> CampaignRecord:
        (campaign,) = self.store.campaigns.list(DEFAULT_TENANT).campaigns
        return campaign

    def reasons(self) -> list[str]:
        return [reason["code"] for reason in self.campaign().decision["reasons"]]


@pytest.fixture(params=["local", "remote"])
def office(request: pytest.FixtureRequest, sqlite_url: str, tmp_path: Path) -> Iterator[Office]:
    database = Database.open(sqlite_url)
    store = Store(database)

    def make(hub: Hub, add: Callable[[str, Path], object], server: StandinHub | None) -> Office:
        tools = Runtime(hub, FactorCache(tmp_path / "cache", 2**30, None, 60, 2**20), torch.device("cpu"))
        settings = Settings(_env_file=None, home=tmp_path, heartbeat_s=0.2, retry_base_s=0, hub_token=TOKEN)
        return Office(hub, store, WorkerContext(settings, store, tools, "worker"), add, server)

    try:
        if request.param == "local":
            root = tmp_path / "hub"
            yield make(LocalHub(root), lambda repo_id, files: _into(LocalHub(root), repo_id, files), None)
        else:
            with StandinHub() as server:
                token = server.add_token(TOKEN, user="tiny")
                hub = RemoteHub(token, server.url, tmp_path / "hub-cache", timeout_s=10, wait_s=0.01)
                yield make(hub, server.add_repo, server)
    finally:
        database.close()


def _into(hub: LocalHub, repo_id: str, files: Path) -> None:
    head = hub.get_latest(repo_id)
    parent = head.sha if head is not None else None
    hub.publish(repo_id, files, message="Add files", parent=parent, private=True, create_pr=False)


def variant(tmp_path: Path, **changes: Any) -> Path:
    """The bundled base with another card or without some files."""
    folder = tmp_path / f"variant-{len(list(tmp_path.glob('variant-*')))}"
    shutil.copytree(files_of("harbor-2"), folder)
    for path in folder.rglob("*"):
        path.chmod(0o644 if path.is_file() else 0o755)
    for name in changes.pop("without", ()):
        (folder / name).unlink()
    if "card" in changes:
        (folder / "README.md").write_text(changes["card"])
    if "config" in changes:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes["config"]}))
    return folder


def test_a_release_that_passes_becomes_a_campaign_whose_facts_come_from_the_hub(office: Office) -> None:
    office.subscribe()
    office.add("tiny/harbor-2", files_of("harbor-2"))
    result = office.release()

    campaign = office.campaign()
    assert result == {"outcome": "open", "campaign": campaign.id}
    facts = campaign.decision["facts"]
    assert (facts["model_type"], facts["licences"]) == ("llama", ["apache-2.0"])
    assert facts["bytes"] == (files_of("harbor-2") / "model.safetensors").stat().st_size
    assert facts["parameters"] * 2 == pytest.approx(facts["bytes"], rel=0.02)  # bfloat16, and a header
    head = office.hub.get_latest("tiny/harbor-2")
    assert head is not None
    (entry,) = office.store.campaigns.list_entries(DEFAULT_TENANT, campaign.id)
    assert entry.job.request["target"] == {"repo_id": "tiny/harbor-2", "revision": head.sha}
    assert entry.job.request["output"]["repo_id"] == office.hub.make_output_name(
        "tiny/harbor-sql-lora--harbor-2"
    )


def test_a_repo_that_is_empty_at_first_waits_and_is_converted_to_when_its_weights_come(
    office: Office, tmp_path: Path
) -> None:
    office.subscribe()
    office.add("tiny/harbor-2", variant(tmp_path, without=["model.safetensors", "config.json"]))
    assert office.release(sha="first")["outcome"] == "waiting"
    assert office.reasons() == ["incomplete"]
    office.add("tiny/harbor-2", variant(tmp_path, without=["model.safetensors"]))
    assert office.release(sha="second")["outcome"] == "waiting"
    assert "model.safetensors" in office.campaign().decision["reasons"][0]["message"]
    office.add("tiny/harbor-2", files_of("harbor-2"))
    assert office.release(sha="third")["outcome"] == "open"
    assert office.reasons() == []


def test_a_model_whose_index_names_shards_that_have_not_come_yet_waits(
    office: Office, tmp_path: Path
) -> None:
    office.subscribe()
    sharded = variant(tmp_path, without=["model.safetensors"])
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    office.add("tiny/harbor-2", sharded)
    assert office.release()["outcome"] == "waiting"
    assert "model-00001-of-00002.safetensors" in office.campaign().decision["reasons"][0]["message"]


def test_a_push_to_a_base_that_was_handled_changes_nothing_unless_updates_are_asked_for(
    office: Office, tmp_path: Path
) -> None:
    office.subscribe()
    office.subscribe(on_update=True)
    office.add("tiny/harbor-2", files_of("harbor-2"))
    office.store.releases.record(seen("first", "tiny/harbor-2"))
    assert [result["outcome"] for result in office.work()] == ["open", "open"]

    office.add("tiny/harbor-2", variant(tmp_path, card="---\nlicense: mit\n---\nOther words."))
    office.store.releases.record(seen("second", "tiny/harbor-2"))
    assert [result["outcome"] for result in office.work()] == ["handled", "handled"]

    office.add("tiny/harbor-2", variant(tmp_path, config={"rope_theta": 20000.0}))
    office.store.releases.record(seen("third", "tiny/harbor-2"))
    assert [result["outcome"] for result in office.work()] == ["handled", "open"]


@pytest.mark.parametrize(
    ("guards", "reason"),
    [
        ({"max_bytes": 1000}, "max_bytes"),
        ({"min_bytes": 10**9}, "min_bytes"),
        ({"max_parameters": 1000}, "max_parameters"),
        ({"min_parameters": 10**9}, "min_parameters"),
        ({"kind": "instruct"}, "kind"),
        ({"licences": ["mit", "bsd-3-clause"]}, "licence"),
    ],
)
def test_each_guard_refuses_and_the_campaign_says_why(
    office: Office, guards: dict[str, Any], reason: str
) -> None:
    office.subscribe(guards=guards)
    office.add("tiny/harbor-2", files_of("harbor-2"))
    assert office.release()["outcome"] == "refused"
    assert office.reasons() == [reason]
    assert office.store.jobs.list(DEFAULT_TENANT).jobs == ()


def test_guards_that_fit_let_the_release_pass(office: Office, tmp_path: Path) -> None:
    card = "---\nlicense: other\nlicense_name: harbour-licence\ntags:\n- conversational\n---\n"
    guards = {"kind": "instruct", "licences": ["Harbour-Licence"], "max_bytes": 10**9, "min_parameters": 1}
    office.subscribe(guards=guards)
    office.add("tiny/harbor-2", variant(tmp_path, card=card))
    assert office.release()["outcome"] == "open"


def test_a_family_that_cannot_be_a_target_and_a_pickle_are_refused_by_name(
    office: Office, tmp_path: Path
) -> None:
    office.subscribe()
    office.add("tiny/harbor-2", variant(tmp_path, config={"model_type": "mamba"}))
    assert office.release()["outcome"] == "refused"
    assert "mamba" in office.campaign().decision["reasons"][0]["message"]


def test_a_repo_from_before_the_subscription_is_refused_unless_since_says_otherwise(office: Office) -> None:
    office.add("tiny/harbor-2", files_of("harbor-2"))
    office.subscribe()
    assert office.release()["outcome"] == "refused"
    assert office.reasons() == ["existed_before"]


def test_the_budget_leaves_adapters_out_and_says_which(office: Office) -> None:
    adapters = [{"repo_id": f"tiny/lora-{n}"} for n in range(3)]
    office.subscribe(adapters=adapters, guards={"max_jobs": 2})
    office.add("tiny/harbor-2", files_of("harbor-2"))
    office.release()
    campaign = office.campaign()
    assert campaign.tallies["convert"].total == 2
    assert [(one["position"], one["code"]) for one in campaign.decision["left_out"]] == [(2, "max_jobs")]


def test_an_output_name_that_is_too_long_leaves_its_adapter_out(office: Office) -> None:
    adapters = [LORA, {"repo_id": f"tiny/{'a' * 85}"}]
    office.subscribe(adapters=adapters)
    office.add("tiny/harbor-2", files_of("harbor-2"))
    office.release()
    campaign = office.campaign()
    assert [(one["position"], one["code"]) for one in campaign.decision["left_out"]] == [(1, "output_name")]
    assert campaign.tallies["convert"].total == 1


def test_every_subfolder_of_a_library_is_an_adapter_with_an_output_of_its_own(office: Office) -> None:
    library = [{"repo_id": "tiny/library", "subfolder": name} for name in ("sql", "poems")]
    office.subscribe(adapters=library)
    office.add("tiny/harbor-2", files_of("harbor-2"))
    office.release()
    outputs = [name.replace("--", "-") for name in office.campaign().decision["outputs"].values()]
    assert outputs == ["tiny/library-sql-harbor-2", "tiny/library-poems-harbor-2"]
    with office.store.db.read() as connection:
        requests = connection.scalars(select(Job.request).where(Job.kind == "convert").order_by(Job.id)).all()
    assert sorted(request["adapter"]["subfolder"] for request in requests) == ["poems", "sql"]


def test_an_adapter_that_a_pattern_means_too_is_passed_over_without_a_row(office: Office) -> None:
    office.subscribe(bases="tiny/*")
    office.add("tiny/harbor-sql-lora", files_of("harbor-sql-lora"))
    assert office.release("harbor-sql-lora") == {"outcome": "adapter"}
    assert office.store.campaigns.list(DEFAULT_TENANT).campaigns == ()


def test_a_repo_that_the_token_may_not_read_leaves_no_trace_for_the_tenant(office: Office) -> None:
    office.subscribe(bases="tiny/*")
    assert office.release("secret") == {"outcome": "unreadable", "code": "repo_not_found"}
    assert office.store.campaigns.list(DEFAULT_TENANT).campaigns == ()
    assert office.store.jobs.list(DEFAULT_TENANT).jobs == ()


def test_a_dry_run_queues_pre_checks(office: Office) -> None:
    office.subscribe(dry_run=True)
    office.add("tiny/harbor-2", files_of("harbor-2"))
    office.release()
    (job,) = office.store.jobs.list(DEFAULT_TENANT).jobs
    assert (job.kind, job.request["output"]["repo_id"]) == ("precheck", None)


def test_a_subscription_that_was_paused_or_deleted_meanwhile_begins_nothing(office: Office) -> None:
    office.add("tiny/harbor-2", files_of("harbor-2"))
    subscription = office.subscribe(since="2020-01-01")
    office.store.releases.record(seen("first", "tiny/harbor-2"))
    office.store.subscriptions.set_paused(DEFAULT_TENANT, subscription, True)
    assert office.work() == [{"outcome": "paused"}]
    office.store.subscriptions.set_paused(DEFAULT_TENANT, subscription, False)
    assert office.store.releases.record(seen("first", "tiny/harbor-2")) == "recorded"
    office.store.subscriptions.delete(DEFAULT_TENANT, subscription)
    assert office.work() == [{"outcome": "unsubscribed"}]


def test_a_look_finds_the_release_whose_webhook_never_came_and_both_make_one(office: Office) -> None:
    office.add("tiny/harbor-1", files_of("harbor-1"))
    office.subscribe()
    office.add("tiny/harbor-2", files_of("harbor-2"))
    office.add("tiny/lantern-1", files_of("lantern-1"))
    assert office.store.releases.enqueue_polls(0) == 1

    (look,) = office.work("reconcile")

    assert look["releases"] == 1, "harbor-1 is older than the subscription, lantern-1 is of another family"
    head = office.hub.get_latest("tiny/harbor-2")
    assert head is not None
    assert office.store.releases.record(seen(head.sha, "tiny/harbor-2")) == "duplicate", (
        "the webhook comes late"
    )
    assert [result["outcome"] for result in office.work()] == ["open"]
    assert office.campaign().repo_id == "tiny/harbor-2"
    office.store.releases.enqueue_polls(0)
    assert [result["releases"] for result in office.work("reconcile")] == [0]


@pytest.mark.parametrize("office", ["remote"], indirect=True)
@pytest.mark.parametrize("announced", [True, False])
def test_a_repo_that_is_made_public_after_its_last_push_is_found_by_a_later_look(
    office: Office, announced: bool
) -> None:
    assert office.server is not None
    office.subscribe(bases="big/harbor-*")
    sha = office.server.add_repo("big/harbor-2", files_of("harbor-2"), private=True)
    if announced:
        office.store.releases.record(seen(sha, "big/harbor-2"))
        assert [result["outcome"] for result in office.work()] == ["unreadable"]
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    office.store.clock = lambda: tomorrow
    office.store.releases.enqueue_polls(3600)
    assert [look["releases"] for look in office.work("reconcile")] == [0], "it is hidden"

    office.server.store.repos["big/harbor-2"].private = False
    office.store.clock = lambda: tomorrow + timedelta(hours=1)
    office.store.releases.enqueue_polls(3600)

    assert [look["releases"] for look in office.work("reconcile")] == [1]
    assert [result["outcome"] for result in office.work()] == ["open"]
    office.store.clock = lambda: tomorrow + timedelta(hours=2)
    office.store.releases.enqueue_polls(3600)
    assert [look["releases"] for look in office.work("reconcile")] == [0], "once is enough"


def test_a_subscription_that_begins_in_the_past_finds_what_exists(office: Office) -> None:
    office.add("tiny/harbor-2", files_of("harbor-2"))
    office.subscribe(since="2020-01-01")
    assert [look["releases"] for look in office.work("reconcile")] == [1]
    assert [result["outcome"] for result in office.work()] == ["open"]


def test_an_owner_who_does_not_exist_has_no_models(office: Office) -> None:
    assert list(office.hub.list_models("nobody")) == []
    assert list(office.hub.list_models("..")) == []


def test_models_are_listed_the_last_changed_first(office: Office) -> None:
    for name in ("harbor-1", "harbor-2", "lantern-1"):
        office.add(f"tiny/{name}", files_of(name))
    found = list(office.hub.list_models("tiny"))
    assert [model.repo_id for model in found] == ["tiny/lantern-1", "tiny/harbor-2", "tiny/harbor-1"]
    assert all(model.created_at <= model.modified_at for model in found)
    assert found[0].sha == office.hub.get_info("tiny/lantern-1").repo.sha


def test_cards_that_are_no_yaml_say_nothing(office: Office, tmp_path: Path) -> None:
    office.add("tiny/harbor-2", variant(tmp_path, card="No metadata here."))
    assert office.hub.get_info("tiny/harbor-2").licenses == ()


@pytest.mark.parametrize("office", ["local"], indirect=True)
@pytest.mark.parametrize(
    ("licence", "read"), [(f"0x{'f' * 5000}", ()), ('"\\ud800"', ("\\ud800",)), ('"\\e[2J"', ("\\x1b[2J",))]
)
def test_what_cannot_be_written_is_spelled_out_or_left_out(
    office: Office, tmp_path: Path, licence: str, read: tuple[str, ...]
) -> None:
    office.add("tiny/harbor-2", variant(tmp_path, card=f"---\nlicense: {licence}\n---\n"))
    assert office.hub.get_info("tiny/harbor-2").licenses == read


@pytest.mark.parametrize("licence", ['"\\e]0;mine\\a\\nx"', '"\\0"'])
def test_a_card_that_no_screen_and_no_json_can_show_is_told_in_words(
    office: Office, tmp_path: Path, licence: str
) -> None:
    office.subscribe(guards={"licences": ["mit"]})
    office.add("tiny/harbor-2", variant(tmp_path, card=f"---\nlicense: {licence}\ntags: [{licence}]\n---\n"))

    assert office.release()["outcome"] == "refused"

    page = CampaignListOut.from_page(office.store.campaigns.list(DEFAULT_TENANT))
    (shown,) = json.loads(page.model_dump_json())["campaigns"]
    told = [shown["reasons"][0]["message"], *shown["facts"]["licences"], *shown["facts"]["tags"]]
    assert all(text.isprintable() for text in told)


@pytest.mark.parametrize("office", ["remote"], indirect=True)
def test_a_hub_that_is_away_is_tried_again(office: Office) -> None:
    assert office.server is not None
    office.subscribe()
    office.add("tiny/harbor-2", files_of("harbor-2"))
    office.server.fail(r"GET /api/models/tiny/harbor-2", status=503, times=3)
    office.store.releases.record(seen("first", "tiny/harbor-2"))
    office.work()
    with office.store.db.read() as connection:
        assert connection.scalar(select(Job.state).where(Job.kind == "release")) == "retry_wait"
    office.store.outbox.reap()
    assert [result["outcome"] for result in office.work()] == ["open"]


@pytest.mark.parametrize("office", ["remote"], indirect=True)
def test_a_gated_base_is_refused_by_name_until_access_is_granted(office: Office) -> None:
    assert office.server is not None
    office.server.add_repo("big/harbor-2", files_of("harbor-2"), gated=True)
    subscription = office.subscribe(bases="big/harbor-*", since="2020-01-01")
    office.store.releases.record(seen("first", "big/harbor-2"))
    assert [result["outcome"] for result in office.work()] == ["refused"]
    assert office.reasons() == ["repo_gated"]
    office.server.store.repos["big/harbor-2"].granted.append("tiny")
    office.store.campaign_control.retry(DEFAULT_TENANT, office.campaign().id)
    assert [result["outcome"] for result in office.work()] == ["open"]
    assert office.campaign().subscription_id == subscription
