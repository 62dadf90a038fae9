"""Jobs of kind `release` and `reconcile`, run as a worker runs them, on a hub over HTTP and on a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from rebase.hub.local import LocalHub
from rebase.hub.remote import RemoteHub
from rebase.schemas.campaigns import CampaignListOut
from rebase.store.records import CampaignRecord
from rebase.store.tables.base import DEFAULT_TENANT
from rebase.store.tables.jobs import Job
from support.campaigns import a_subscription, seen
from support.standin_hub import StandinHub
from support.worker_harness import WorkerHarness

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "hub" / "tiny"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
LORA = {"repo_id": "tiny/harbor-sql-lora"}


def files_of(name: str) -> Path:
    """The files of a bundled repo."""
    folder = EXAMPLES / name
    return folder / "revisions" / (folder / "refs" / "main").read_text().strip()


TOKEN = "hf_tiny"


class ReleaseHarness(WorkerHarness):
    """A worker whose hub gets repos on a way that does not go through the port: `add`."""

    server: StandinHub | None = None

    def add(self, repo_id: str, files: Path) -> None:
        """Put a repo onto the hub, or a commit onto a repo."""
        if self.server is not None:
            self.server.add_repo(repo_id, files)
        else:
            assert isinstance(self.hub, LocalHub)
            _publish(self.hub, repo_id, files)

    def subscribe(self, **changes: Any) -> str:
        request = {"bases": "tiny/harbor-*", "adapters": [LORA], **changes}
        return self.store.subscriptions.create(DEFAULT_TENANT, a_subscription(**request))[0].id

    def work(self, kind: str = "release") -> list[dict[str, Any]]:
        """Run every waiting job of a kind; the results of those that ran."""
        return self.run_queued(kind)

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
def harness(request: pytest.FixtureRequest, sqlite_url: str, tmp_path: Path) -> Iterator[ReleaseHarness]:
    with ExitStack() as stack:
        server = stack.enter_context(StandinHub()) if request.param == "remote" else None
        hub = None
        if server is not None:
            token = server.add_token(TOKEN, user="tiny")
            hub = RemoteHub(token, server.url, tmp_path / "hub-cache", timeout_s=10, wait_s=0.01)
        harness = ReleaseHarness(tmp_path, sqlite_url, hub=hub, hub_token=TOKEN)
        stack.callback(harness.close)
        harness.server = server
        yield harness


def _publish(hub: LocalHub, repo_id: str, files: Path) -> None:
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


def test_a_release_that_passes_becomes_a_campaign_whose_facts_come_from_the_hub(
    harness: ReleaseHarness,
) -> None:
    harness.subscribe()
    harness.add("tiny/harbor-2", files_of("harbor-2"))
    result = harness.release()

    campaign = harness.campaign()
    assert result == {"outcome": "open", "campaign": campaign.id}
    facts = campaign.decision["facts"]
    assert (facts["model_type"], facts["licences"]) == ("llama", ["apache-2.0"])
    assert facts["bytes"] == (files_of("harbor-2") / "model.safetensors").stat().st_size
    assert facts["parameters"] * 2 == pytest.approx(facts["bytes"], rel=0.02)  # bfloat16, and a header
    head = harness.hub.get_latest("tiny/harbor-2")
    assert head is not None
    (entry,) = harness.store.campaigns.list_entries(DEFAULT_TENANT, campaign.id)
    assert entry.job.request["target"] == {"repo_id": "tiny/harbor-2", "revision": head.sha}
    assert entry.job.request["output"]["repo_id"] == harness.hub.make_output_name(
        "tiny/harbor-sql-lora--harbor-2"
    )


def test_a_repo_that_is_empty_at_first_waits_and_is_converted_to_when_its_weights_come(
    harness: ReleaseHarness, tmp_path: Path
) -> None:
    harness.subscribe()
    harness.add("tiny/harbor-2", variant(tmp_path, without=["model.safetensors", "config.json"]))
    assert harness.release(sha="first")["outcome"] == "waiting"
    assert harness.reasons() == ["incomplete"]
    harness.add("tiny/harbor-2", variant(tmp_path, without=["model.safetensors"]))
    assert harness.release(sha="second")["outcome"] == "waiting"
    assert "model.safetensors" in harness.campaign().decision["reasons"][0]["message"]
    harness.add("tiny/harbor-2", files_of("harbor-2"))
    assert harness.release(sha="third")["outcome"] == "open"
    assert harness.reasons() == []


def test_a_model_whose_index_names_shards_that_have_not_come_yet_waits(
    harness: ReleaseHarness, tmp_path: Path
) -> None:
    harness.subscribe()
    sharded = variant(tmp_path, without=["model.safetensors"])
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    harness.add("tiny/harbor-2", sharded)
    assert harness.release()["outcome"] == "waiting"
    assert "model-00001-of-00002.safetensors" in harness.campaign().decision["reasons"][0]["message"]


def test_a_push_to_a_base_that_was_handled_changes_nothing_unless_updates_are_asked_for(
    harness: ReleaseHarness, tmp_path: Path
) -> None:
    harness.subscribe()
    harness.subscribe(on_update=True)
    harness.add("tiny/harbor-2", files_of("harbor-2"))
    harness.store.releases.record(seen("first", "tiny/harbor-2"))
    assert [result["outcome"] for result in harness.work()] == ["open", "open"]

    harness.add("tiny/harbor-2", variant(tmp_path, card="---\nlicense: mit\n---\nOther words."))
    harness.store.releases.record(seen("second", "tiny/harbor-2"))
    assert [result["outcome"] for result in harness.work()] == ["handled", "handled"]

    harness.add("tiny/harbor-2", variant(tmp_path, config={"rope_theta": 20000.0}))
    harness.store.releases.record(seen("third", "tiny/harbor-2"))
    assert [result["outcome"] for result in harness.work()] == ["handled", "open"]


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
    harness: ReleaseHarness, guards: dict[str, Any], reason: str
) -> None:
    harness.subscribe(guards=guards)
    harness.add("tiny/harbor-2", files_of("harbor-2"))
    assert harness.release()["outcome"] == "refused"
    assert harness.reasons() == [reason]
    assert harness.store.jobs.list(DEFAULT_TENANT).jobs == ()


def test_guards_that_fit_let_the_release_pass(harness: ReleaseHarness, tmp_path: Path) -> None:
    card = "---\nlicense: other\nlicense_name: harbour-licence\ntags:\n- conversational\n---\n"
    guards = {"kind": "instruct", "licences": ["Harbour-Licence"], "max_bytes": 10**9, "min_parameters": 1}
    harness.subscribe(guards=guards)
    harness.add("tiny/harbor-2", variant(tmp_path, card=card))
    assert harness.release()["outcome"] == "open"


def test_a_family_that_cannot_be_a_target_and_a_pickle_are_refused_by_name(
    harness: ReleaseHarness, tmp_path: Path
) -> None:
    harness.subscribe()
    harness.add("tiny/harbor-2", variant(tmp_path, config={"model_type": "brand_new"}))
    assert harness.release()["outcome"] == "refused"
    assert "brand_new" in harness.campaign().decision["reasons"][0]["message"]


def test_a_repo_from_before_the_subscription_is_refused_unless_since_says_otherwise(
    harness: ReleaseHarness,
) -> None:
    harness.add("tiny/harbor-2", files_of("harbor-2"))
    harness.subscribe()
    assert harness.release()["outcome"] == "refused"
    assert harness.reasons() == ["existed_before"]


def test_the_budget_leaves_adapters_out_and_says_which(harness: ReleaseHarness) -> None:
    adapters = [{"repo_id": f"tiny/lora-{n}"} for n in range(3)]
    harness.subscribe(adapters=adapters, guards={"max_jobs": 2})
    harness.add("tiny/harbor-2", files_of("harbor-2"))
    harness.release()
    campaign = harness.campaign()
    assert campaign.tallies["convert"].total == 2
    assert [(one["position"], one["code"]) for one in campaign.decision["left_out"]] == [(2, "max_jobs")]


def test_an_output_name_that_is_too_long_leaves_its_adapter_out(harness: ReleaseHarness) -> None:
    adapters = [LORA, {"repo_id": f"tiny/{'a' * 85}"}]
    harness.subscribe(adapters=adapters)
    harness.add("tiny/harbor-2", files_of("harbor-2"))
    harness.release()
    campaign = harness.campaign()
    assert [(one["position"], one["code"]) for one in campaign.decision["left_out"]] == [(1, "output_name")]
    assert campaign.tallies["convert"].total == 1


def test_every_subfolder_of_a_library_has_an_output_of_its_own(
    harness: ReleaseHarness,
) -> None:
    library = [{"repo_id": "tiny/library", "subfolder": name} for name in ("sql", "poems")]
    harness.subscribe(adapters=library)
    harness.add("tiny/harbor-2", files_of("harbor-2"))
    harness.release()
    outputs = [name.replace("--", "-") for name in harness.campaign().decision["outputs"].values()]
    assert outputs == ["tiny/library-sql-harbor-2", "tiny/library-poems-harbor-2"]
    with harness.store.db.read() as connection:
        requests = connection.scalars(select(Job.request).where(Job.kind == "convert").order_by(Job.id)).all()
    assert sorted(request["adapter"]["subfolder"] for request in requests) == ["poems", "sql"]


def test_an_adapter_that_a_pattern_means_too_is_passed_over_without_a_row(harness: ReleaseHarness) -> None:
    harness.subscribe(bases="tiny/*")
    harness.add("tiny/harbor-sql-lora", files_of("harbor-sql-lora"))
    assert harness.release("harbor-sql-lora") == {"outcome": "adapter"}
    assert harness.store.campaigns.list(DEFAULT_TENANT).campaigns == ()


def test_a_repo_that_the_token_may_not_read_leaves_no_trace_for_the_tenant(harness: ReleaseHarness) -> None:
    harness.subscribe(bases="tiny/*")
    assert harness.release("secret") == {"outcome": "unreadable", "code": "repo_not_found"}
    assert harness.store.campaigns.list(DEFAULT_TENANT).campaigns == ()
    assert harness.store.jobs.list(DEFAULT_TENANT).jobs == ()


def test_a_dry_run_queues_pre_checks(harness: ReleaseHarness) -> None:
    harness.subscribe(dry_run=True)
    harness.add("tiny/harbor-2", files_of("harbor-2"))
    harness.release()
    (job,) = harness.store.jobs.list(DEFAULT_TENANT).jobs
    assert (job.kind, job.request["output"]["repo_id"]) == ("precheck", None)


def test_a_subscription_that_was_paused_or_deleted_meanwhile_begins_nothing(harness: ReleaseHarness) -> None:
    harness.add("tiny/harbor-2", files_of("harbor-2"))
    subscription = harness.subscribe(since="2020-01-01")
    harness.store.releases.record(seen("first", "tiny/harbor-2"))
    harness.store.subscriptions.set_paused(DEFAULT_TENANT, subscription, True)
    assert harness.work() == [{"outcome": "paused"}]
    harness.store.subscriptions.set_paused(DEFAULT_TENANT, subscription, False)
    assert harness.store.releases.record(seen("first", "tiny/harbor-2")) == "recorded"
    harness.store.subscriptions.delete(DEFAULT_TENANT, subscription)
    assert harness.work() == [{"outcome": "unsubscribed"}]


def test_a_look_finds_the_release_whose_webhook_never_came_and_both_make_one(harness: ReleaseHarness) -> None:
    harness.add("tiny/harbor-1", files_of("harbor-1"))
    harness.subscribe()
    harness.add("tiny/harbor-2", files_of("harbor-2"))
    harness.add("tiny/lantern-1", files_of("lantern-1"))
    assert harness.store.releases.enqueue_polls(0) == 1

    (look,) = harness.work("reconcile")

    assert look["releases"] == 1, "harbor-1 is older than the subscription, lantern-1 is of another family"
    head = harness.hub.get_latest("tiny/harbor-2")
    assert head is not None
    assert harness.store.releases.record(seen(head.sha, "tiny/harbor-2")) == "duplicate", (
        "the webhook comes late"
    )
    assert [result["outcome"] for result in harness.work()] == ["open"]
    assert harness.campaign().repo_id == "tiny/harbor-2"
    harness.store.releases.enqueue_polls(0)
    assert [result["releases"] for result in harness.work("reconcile")] == [0]


@pytest.mark.parametrize("harness", ["remote"], indirect=True)
@pytest.mark.parametrize("announced", [True, False])
def test_a_repo_that_is_made_public_after_its_last_push_is_found_by_a_later_look(
    harness: ReleaseHarness, announced: bool
) -> None:
    assert harness.server is not None
    harness.subscribe(bases="big/harbor-*")
    sha = harness.server.add_repo("big/harbor-2", files_of("harbor-2"), private=True)
    if announced:
        harness.store.releases.record(seen(sha, "big/harbor-2"))
        assert [result["outcome"] for result in harness.work()] == ["unreadable"]
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    harness.store.clock = lambda: tomorrow
    harness.store.releases.enqueue_polls(3600)
    assert [look["releases"] for look in harness.work("reconcile")] == [0], "it is hidden"

    harness.server.store.repos["big/harbor-2"].private = False
    harness.store.clock = lambda: tomorrow + timedelta(hours=1)
    harness.store.releases.enqueue_polls(3600)

    assert [look["releases"] for look in harness.work("reconcile")] == [1]
    assert [result["outcome"] for result in harness.work()] == ["open"]
    harness.store.clock = lambda: tomorrow + timedelta(hours=2)
    harness.store.releases.enqueue_polls(3600)
    assert [look["releases"] for look in harness.work("reconcile")] == [0], "once is enough"


def test_a_subscription_that_begins_in_the_past_finds_what_exists(harness: ReleaseHarness) -> None:
    harness.add("tiny/harbor-2", files_of("harbor-2"))
    harness.subscribe(since="2020-01-01")
    assert [look["releases"] for look in harness.work("reconcile")] == [1]
    assert [result["outcome"] for result in harness.work()] == ["open"]


def test_an_owner_who_does_not_exist_has_no_models(harness: ReleaseHarness) -> None:
    assert list(harness.hub.list_models("nobody")) == []
    assert list(harness.hub.list_models("..")) == []


def test_models_are_listed_the_last_changed_first(harness: ReleaseHarness) -> None:
    for name in ("harbor-1", "harbor-2", "lantern-1"):
        harness.add(f"tiny/{name}", files_of(name))
    found = list(harness.hub.list_models("tiny"))
    assert [model.repo_id for model in found] == ["tiny/lantern-1", "tiny/harbor-2", "tiny/harbor-1"]
    assert all(model.created_at <= model.modified_at for model in found)
    assert found[0].sha == harness.hub.get_info("tiny/lantern-1").repo.sha


def test_cards_that_are_no_yaml_say_nothing(harness: ReleaseHarness, tmp_path: Path) -> None:
    harness.add("tiny/harbor-2", variant(tmp_path, card="No metadata here."))
    assert harness.hub.get_info("tiny/harbor-2").licenses == ()


@pytest.mark.parametrize("harness", ["local"], indirect=True)
@pytest.mark.parametrize(
    ("licence", "read"), [(f"0x{'f' * 5000}", ()), ('"\\ud800"', ("\\ud800",)), ('"\\e[2J"', ("\\x1b[2J",))]
)
def test_what_cannot_be_written_is_spelled_out_or_left_out(
    harness: ReleaseHarness, tmp_path: Path, licence: str, read: tuple[str, ...]
) -> None:
    harness.add("tiny/harbor-2", variant(tmp_path, card=f"---\nlicense: {licence}\n---\n"))
    assert harness.hub.get_info("tiny/harbor-2").licenses == read


@pytest.mark.parametrize("licence", ['"\\e]0;mine\\a\\nx"', '"\\0"'])
def test_a_card_that_no_screen_and_no_json_can_show_is_told_in_words(
    harness: ReleaseHarness, tmp_path: Path, licence: str
) -> None:
    harness.subscribe(guards={"licences": ["mit"]})
    harness.add("tiny/harbor-2", variant(tmp_path, card=f"---\nlicense: {licence}\ntags: [{licence}]\n---\n"))

    assert harness.release()["outcome"] == "refused"

    page = CampaignListOut.from_page(harness.store.campaigns.list(DEFAULT_TENANT))
    (shown,) = json.loads(page.model_dump_json())["campaigns"]
    told = [shown["reasons"][0]["message"], *shown["facts"]["licences"], *shown["facts"]["tags"]]
    assert all(text.isprintable() for text in told)


@pytest.mark.parametrize("harness", ["remote"], indirect=True)
def test_a_hub_that_is_away_is_tried_again(harness: ReleaseHarness) -> None:
    assert harness.server is not None
    harness.subscribe()
    harness.add("tiny/harbor-2", files_of("harbor-2"))
    harness.server.fail(r"GET /api/models/tiny/harbor-2", status=503, times=3)
    harness.store.releases.record(seen("first", "tiny/harbor-2"))
    harness.work()
    with harness.store.db.read() as connection:
        assert connection.scalar(select(Job.state).where(Job.kind == "release")) == "retry_wait"
    harness.store.outbox.reap()
    assert [result["outcome"] for result in harness.work()] == ["open"]


@pytest.mark.parametrize("harness", ["remote"], indirect=True)
def test_a_gated_base_is_refused_by_name_until_access_is_granted(harness: ReleaseHarness) -> None:
    assert harness.server is not None
    harness.server.add_repo("big/harbor-2", files_of("harbor-2"), gated=True)
    subscription = harness.subscribe(bases="big/harbor-*", since="2020-01-01")
    harness.store.releases.record(seen("first", "big/harbor-2"))
    assert [result["outcome"] for result in harness.work()] == ["refused"]
    assert harness.reasons() == ["repo_gated"]
    harness.server.store.repos["big/harbor-2"].granted.append("tiny")
    harness.store.campaign_control.retry(DEFAULT_TENANT, harness.campaign().id)
    assert [result["outcome"] for result in harness.work()] == ["open"]
    assert harness.campaign().subscription_id == subscription
