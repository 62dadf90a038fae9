"""Anchor pools from names to a prediction: registered, opened, used, and everything that can be wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rebase.cache.factor_cache import FactorCache
from rebase.cache.keys import PoolKey
from rebase.conversion.pipeline import ConversionResult, run_conversion
from rebase.conversion.plan import plan_conversion
from rebase.errors import (
    IncompatiblePair,
    MalformedAdapter,
    Rejected,
    RepoNotFound,
    RequestInvalid,
    TransferError,
)
from rebase.evidence.pool_registration import register_pool
from rebase.hub.local import LocalHub
from rebase.report.progress import NullReporter
from rebase.runtime import Runtime
from rebase.schemas.anchor_pools import NO_ANCHOR_POOLS, AnchorPools, PoolRequest
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.repos import RepoRef
from support.tiny_models import save_adapter, tiny_model
from support.tiny_pools import MIXTURE, MODULES, OnePool, body, make_anchors, make_mixture
from support.tiny_repos import ADAPTER, NEW, OLD, OTHER, edit_json, make_hub, perturb

WARN = {"on_incompatible": "warn"}


def make_alike(hub: Path) -> None:
    """Anchors that predict each other: the first one with a little of their own."""
    first = load_file(hub / "acme/task-0-old/adapter_model.safetensors")
    for number in range(1, 4):
        for which in ("old", "new"):
            path = hub / f"acme/task-{number}-{which}/adapter_model.safetensors"
            own = load_file(path)
            save_file({n: first[n] + 0.1 * own[n] for n in own}, path, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_hub(tmp_path_factory.mktemp("hub"))
    make_anchors(root)
    make_mixture(root)
    return root


@pytest.fixture
def hub(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "hub"))


def tools_of(hub: Path) -> Runtime:
    return Runtime(LocalHub(hub), FactorCache(hub.parent / "cache", 2**30), torch.device("cpu"))


def pool_request(**changes: Any) -> PoolRequest:
    return PoolRequest.model_validate(body() | changes)


def convert(hub: Path, pools: AnchorPools, *, method: Any = None, **changes: Any) -> ConversionResult:
    request: dict[str, Any] = {
        "adapter": {"repo_id": MIXTURE},
        "target": {"repo_id": NEW},
        "method": method or {"name": "anchor_ridge", "penalty": 1e-9},
        "output": {"dtype": "float32"},
        "precheck": WARN,
    }
    out = changes.pop("out", hub.parent / "out")
    kind = changes.pop("kind", "convert")
    validated = ConversionRequest.model_validate(request | changes)
    outcome = run_conversion(
        plan_conversion(validated, kind), tools_of(hub), NullReporter(), out, marker=None, pools=pools
    )
    assert isinstance(outcome, ConversionResult)
    return outcome


def updates(folder: Path) -> dict[str, torch.Tensor]:
    """Module → dense update of an adapter whose scale is in its factors or is α/r."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    return {
        name: scale * tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
        for name in tensors
        if "lora_A" in name
    }


@pytest.mark.parametrize(
    "predictor", ["global_ridge", "per_tensor_ridge", "per_tensor_pca", "procrustes", "topk_ridge"]
)
def test_an_adapter_that_is_a_mixture_of_anchors_becomes_that_mixture_on_the_new_base(
    hub: Path, predictor: str
) -> None:
    method = {"name": "anchor_ridge", "predictor": predictor, "penalty": 1e-9, "count": 3}
    outcome = convert(hub, OnePool(pool_request()), method=method)
    assert outcome.folder is not None
    found = updates(outcome.folder)
    wanted = updates(hub / MIXTURE)
    assert set(found) == set(wanted)
    for name in found:
        torch.testing.assert_close(
            found[name], wanted[name], rtol=1e-3, atol=1e-3 * float(wanted[name].norm())
        )


def test_the_report_names_every_anchor_with_its_weight_and_commit_and_the_card_shows_them(hub: Path) -> None:
    outcome = convert(hub, OnePool(pool_request()), method={"name": "anchor_ridge", "pool": "f" * 32})
    pool = outcome.report.pool
    assert pool is not None and pool.id == "f" * 32
    assert [anchor.source.repo_id for anchor in pool.anchors] == [f"acme/task-{n}-old" for n in range(4)]
    assert all(len(anchor.target.sha) == 40 for anchor in pool.anchors)
    assert sum(anchor.weight for anchor in pool.anchors) == pytest.approx(1.0)
    assert len(pool.curve) > 10
    assert {"loo_error", "span_share", "cosine_to_mean", "domain_entropy"} <= set(
        outcome.report.precheck.measurements
    )
    assert outcome.folder is not None
    card = (outcome.folder / "README.md").read_text()
    assert "acme/task-3-new@" in card and "The tasks that it was predicted from" in card
    codes = {reason.code for reason in outcome.report.precheck.reasons}
    assert {"pool_error", "outside_pool", "small_pool"} <= codes


def test_a_second_prediction_computes_no_inner_products_and_gives_the_same_bytes(hub: Path) -> None:
    one = convert(hub, OnePool(pool_request()), out=hub.parent / "one")
    kept = {entry.key for entry in tools_of(hub).cache.list_entries() if isinstance(entry.key, PoolKey)}
    assert len(kept) == 2 * len(MODULES) * 2, "both sides of every site"
    convert(hub, OnePool(pool_request()), adapter={"repo_id": ADAPTER}, out=hub.parent / "other")
    again = convert(hub, OnePool(pool_request()), out=hub.parent / "two")
    assert {
        entry.key for entry in tools_of(hub).cache.list_entries() if isinstance(entry.key, PoolKey)
    } == kept
    assert one.folder is not None and again.folder is not None
    for path in one.folder.iterdir():
        assert path.read_bytes() == (again.folder / path.name).read_bytes()


def test_a_warm_second_prediction_reads_each_anchor_once_and_target_anchors_only_where_they_weigh(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rebase.lora.reader import LoraAdapter

    register_pool(pool_request(), tools_of(hub), NullReporter())
    read: list[tuple[int, Any]] = []
    plain = LoraAdapter.delta

    def watched(self: LoraAdapter, site: Any) -> Any:
        read.append((id(self), site))
        return plain(self, site)

    monkeypatch.setattr(LoraAdapter, "delta", watched)
    method = {"name": "anchor_ridge", "predictor": "topk_ridge", "count": 1, "penalty": 1e-9}
    convert(hub, OnePool(pool_request()), method=method, kind="precheck")
    per_adapter = {reader: sum(1 for who, _ in read if who == reader) for reader, _ in read}
    sites = 2 * len(MODULES)
    # Four sources at every site, one target at the probed sites (both of its layers), and the adapter itself.
    assert sorted(per_adapter.values())[:4] == [sites] * 4
    assert len(per_adapter) == 4 + 1 + 1


def test_inner_products_of_dora_anchors_belong_to_the_commit_of_their_base(hub: Path) -> None:
    """A DoRA's update is computed from its base's weights."""
    for number in range(4):
        for which, base in (("old", OLD), ("new", NEW)):
            folder = hub / f"acme/task-{number}-{which}"
            shutil.rmtree(folder)
            model = tiny_model("llama", seed=0)
            save_adapter(folder, model, seed=number, r=2, target_modules=["q_proj"], use_dora=True)
            edit_json(folder / "adapter_config.json", base_model_name_or_path=base, revision=None)
    warm = register_pool(pool_request(), tools_of(hub), NullReporter())
    perturb(hub / OLD, 0.5)
    again = register_pool(pool_request(), tools_of(hub), NullReporter())
    shutil.rmtree(hub.parent / "cache")
    cold = register_pool(pool_request(), tools_of(hub), NullReporter())
    assert again == cold
    assert again["measurements"] != warm["measurements"]


def test_auto_uses_a_pool_that_covers_distant_bases_and_leaves_an_unusable_one_aside(hub: Path) -> None:
    perturb(hub / NEW, 1.5)
    outcome = convert(hub, OnePool(pool_request()), method="auto", kind="precheck")
    assert outcome.report.method_used["name"] == "cross_lora", "unrelated tasks do not predict each other"
    assert any("its leave-one-out error" in reason.message for reason in outcome.report.precheck.reasons)
    make_alike(hub)
    outcome = convert(hub, OnePool(pool_request()), method="auto", kind="precheck")
    assert outcome.report.method_used["name"] == "anchor_ridge"
    assert "auto_anchor_ridge" in {reason.code for reason in outcome.report.precheck.reasons}
    shutil.rmtree(hub / "acme/task-2-new")
    outcome = convert(hub, OnePool(pool_request()), method="auto", kind="precheck")
    assert outcome.report.method_used["name"] == "cross_lora"
    assert "pool_unusable" in {reason.code for reason in outcome.report.precheck.reasons}
    assert (
        convert(hub, NO_ANCHOR_POOLS, method="auto", kind="precheck").report.method_used["name"]
        == "cross_lora"
    )


def test_close_bases_are_copied_between_whatever_pools_there_are(hub: Path) -> None:
    outcome = convert(hub, OnePool(pool_request()), method="auto", kind="precheck")
    assert outcome.report.method_used["name"] == "copy"


def test_without_a_pool_the_verdict_says_what_to_do(hub: Path) -> None:
    with pytest.raises(Rejected, match="There is no anchor pool"):
        convert(hub, NO_ANCHOR_POOLS, method="anchor_ridge", precheck={})
    with pytest.raises(IncompatiblePair, match="There is no anchor pool"):
        convert(hub, NO_ANCHOR_POOLS, method="anchor_ridge")


def test_a_refusal_of_the_pool_is_the_same_sentence_as_an_error(hub: Path) -> None:
    """The mixture has twice the anchors' rank."""
    method = {"name": "anchor_ridge", "space": "factors"}
    with pytest.raises(IncompatiblePair, match="equal ranks") as refused:
        convert(hub, OnePool(pool_request()), method=method)
    assert refused.value.pointer == "/method/space"


def test_a_pool_of_other_bases_is_refused_with_the_field(hub: Path) -> None:
    other = pool_request(target={"repo_id": OTHER})
    with pytest.raises(IncompatiblePair, match=OTHER) as refused:
        convert(hub, OnePool(other), method={"name": "anchor_ridge", "pool": "f" * 32})
    assert refused.value.pointer == "/method/pool"


def test_between_two_commits_of_one_repo_a_pool_goes_one_way_only(hub: Path) -> None:
    shas: list[str] = []
    for base in (OLD, NEW):
        parent = shas[-1] if shas else None
        how: dict[str, Any] = {"message": "a release", "private": False, "create_pr": False}
        made = LocalHub(hub).publish("acme/both", hub / base, parent=parent, **how)
        shas.append(made.commit)
    first, second = ({"repo_id": "acme/both", "revision": sha} for sha in shas)
    pools = OnePool(pool_request(source=first, target=second))
    assert convert(hub, pools, source=first, target=second).report.pool is not None
    with pytest.raises(IncompatiblePair, match="other commits") as refused:
        convert(hub, pools, source=second, target=first, out=hub.parent / "back")
    assert refused.value.pointer == "/method/pool"
    perturbed = convert(hub, pools, source=second, target=first, method="auto", kind="precheck")
    assert "pool_anchors" not in perturbed.report.precheck.measurements


def test_modules_that_not_every_anchor_has_are_left_out_and_that_is_said(hub: Path) -> None:
    for which, base in (("old", OLD), ("new", NEW)):
        folder = hub / f"acme/task-1-{which}"
        shutil.rmtree(folder)
        save_adapter(folder, tiny_model("llama", seed=0), seed=8, r=3, target_modules=["q_proj", "v_proj"])
        edit_json(folder / "adapter_config.json", base_model_name_or_path=base, revision=None)
    outcome = convert(hub, OnePool(pool_request()))
    assert {row.target.split(".")[1] for row in outcome.report.sites} == {"q_proj", "v_proj"}
    assert len(outcome.report.dropped_sites) == 2 * (len(MODULES) - 2)
    assert outcome.report.precheck.measurements["sites_covered"] == pytest.approx(2 / 7)


def test_registering_pins_every_commit_measures_the_pool_and_warms_the_cache(hub: Path) -> None:
    result = register_pool(pool_request(), tools_of(hub), NullReporter())
    pinned = PoolRequest.model_validate(result["pool"])
    refs = [pinned.source, pinned.target, *(r for a in pinned.anchors for r in (a.source, a.target))]
    assert all(len(ref.revision) == 40 for ref in refs)
    assert result["sites"] == 2 * len(MODULES)
    assert result["warnings"] == []
    assert result["measurements"]["anchors"] == 4.0
    assert result["measurements"]["loo_error"] > 0.0
    json.dumps(result, allow_nan=False)
    outcome = convert(hub, OnePool(pinned))
    assert outcome.report.pool is not None
    assert outcome.report.warnings == []


def test_an_anchor_that_names_another_base_is_a_warning(hub: Path) -> None:
    edit_json(hub / "acme/task-2-new/adapter_config.json", base_model_name_or_path="acme/elsewhere")
    (warning,) = register_pool(pool_request(), tools_of(hub), NullReporter())["warnings"]
    assert "acme/task-2-new" in warning and "acme/elsewhere" in warning


@pytest.mark.parametrize("auto", [False, True])
def test_an_anchor_that_is_broken_at_a_common_module_is_named_or_left_aside(hub: Path, auto: bool) -> None:
    perturb(hub / NEW, 1.5)
    _broken(hub)
    if auto:
        report = convert(hub, OnePool(pool_request()), method="auto", kind="precheck").report
        assert report.method_used["name"] == "cross_lora"
        assert any("task-3-new" in reason.message for reason in report.precheck.reasons)
        return
    with pytest.raises(MalformedAdapter, match="task-3-new") as raised:
        convert(hub, OnePool(pool_request()))
    assert raised.value.pointer == "/method/pool"


def test_one_adapter_under_two_names_counts_once(hub: Path) -> None:
    sha = LocalHub(hub).resolve(RepoRef(repo_id="acme/task-0-old")).sha
    anchors = body()["anchors"]
    anchors[2]["source"] = {"repo_id": "acme/task-0-old", "revision": sha}
    with pytest.raises(RequestInvalid, match="Anchors 0 and 2") as raised:
        register_pool(pool_request(anchors=anchors), tools_of(hub), NullReporter())
    assert raised.value.pointer == "/anchors/2/source"


def test_anchors_may_lie_in_the_subfolders_of_one_repo(hub: Path) -> None:
    usual = register_pool(pool_request(), tools_of(hub), NullReporter())["measurements"]
    anchors = body()["anchors"]
    for number, anchor in enumerate(anchors):
        shutil.move(hub / f"acme/task-{number}-old", hub / f"acme/library/task-{number}")
        anchor["source"] = {"repo_id": "acme/library", "subfolder": f"task-{number}"}
    found = register_pool(pool_request(anchors=anchors), tools_of(hub), NullReporter())
    assert found["measurements"] == usual
    assert [anchor["source"]["subfolder"] for anchor in found["pool"]["anchors"]] == [
        f"task-{number}" for number in range(4)
    ]
    assert len({anchor["source"]["revision"] for anchor in found["pool"]["anchors"]}) == 1


@pytest.mark.parametrize("size", [1e15, 1e-15])
def test_the_size_of_updates_does_not_change_how_well_a_pool_predicts(hub: Path, size: float) -> None:
    """Their inner products leave the range of float32, in which the cache keeps them."""
    usual = register_pool(pool_request(), tools_of(hub), NullReporter())["measurements"]["loo_error"]
    for number in range(4):
        path = hub / f"acme/task-{number}-new/adapter_model.safetensors"
        scaled = {name: tensor * size for name, tensor in load_file(path).items()}
        save_file(scaled, path, metadata={"format": "pt"})
    found = register_pool(pool_request(), tools_of(hub), NullReporter())["measurements"]["loo_error"]
    assert found == pytest.approx(usual, rel=1e-5)


def test_what_a_stranger_wrote_as_a_base_is_spelled_out(hub: Path) -> None:
    edit_json(hub / "acme/task-2-new/adapter_config.json", base_model_name_or_path="\ud800\x1b[2J")
    (warning,) = register_pool(pool_request(), tools_of(hub), NullReporter())["warnings"]
    assert warning.isprintable()
    warning.encode()


def test_a_refused_pool_is_the_same_refusal_where_it_has_fewer_modules(hub: Path) -> None:
    for number in range(4):
        for which, base in (("old", OLD), ("new", NEW)):
            folder = hub / f"acme/task-{number}-{which}"
            shutil.rmtree(folder)
            save_adapter(folder, tiny_model("llama", seed=0), seed=number, r=2, target_modules=["v_proj"])
            edit_json(folder / "adapter_config.json", base_model_name_or_path=base, revision=None)
    with pytest.raises(IncompatiblePair, match="equal ranks"):
        convert(hub, OnePool(pool_request()), method={"name": "anchor_ridge", "space": "factors"})
    report = convert(hub, OnePool(pool_request())).report
    assert any("get no update" in warning for warning in report.warnings)
    assert report.precheck.measurements["sites"] == 2.0


def _gone(hub: Path) -> None:
    shutil.rmtree(hub / "acme/task-3-new")


def _broken(hub: Path) -> None:
    path = hub / "acme/task-3-new/adapter_model.safetensors"
    tensors = load_file(path)
    tensors[min(tensors)][0, 0] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})


def _empty(hub: Path) -> None:
    path = hub / "acme/task-3-new/adapter_model.safetensors"
    save_file({n: torch.zeros_like(t) for n, t in load_file(path).items()}, path, metadata={"format": "pt"})


def _wrong_base(hub: Path) -> None:
    folder = hub / "acme/task-3-new"
    shutil.rmtree(folder)
    wide = tiny_model("gpt_neox", seed=5, hidden_size=48, num_hidden_layers=3)
    save_adapter(folder, wide, r=2, target_modules=["query_key_value"])


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (_gone, RepoNotFound, "task-3-new"),
        (_broken, MalformedAdapter, "NaN"),
        (_empty, RequestInvalid, "changes none"),
        (_wrong_base, TransferError, "task-3-new"),
    ],
    ids=["gone", "broken", "empty", "of another base"],
)
def test_registering_a_pool_with_a_bad_anchor_points_at_it(
    hub: Path, damage: Any, error: type[Exception], words: str
) -> None:
    damage(hub)
    with pytest.raises(error, match=words) as raised:
        register_pool(pool_request(), tools_of(hub), NullReporter())
    assert getattr(raised.value, "pointer", None) == "/anchors/3/target"


def test_an_adapter_that_is_an_anchor_itself_is_told_so(hub: Path) -> None:
    outcome = convert(hub, OnePool(pool_request()), adapter={"repo_id": "acme/task-1-old"})
    assert any("itself an anchor" in warning for warning in outcome.report.warnings)


def test_a_base_that_moved_on_since_the_pool_was_registered_is_a_warning(hub: Path) -> None:
    pinned = PoolRequest.model_validate(register_pool(pool_request(), tools_of(hub), NullReporter())["pool"])
    perturb(hub / NEW, 0.01)
    outcome = convert(hub, OnePool(pinned))
    assert any("was registered with" in warning for warning in outcome.report.warnings)
