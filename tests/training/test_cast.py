"""CAST's heads as they are trained, and as they are folded, on tiny models of several families."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from benchmarks.synthetic import byte_level_tokenizer
from rebase.cache.factor_cache import FactorCache
from rebase.conversion.pipeline import ConversionResult, run_conversion
from rebase.conversion.plan import plan_conversion
from rebase.errors import Cancelled, TrainingFailed
from rebase.evidence.paired_text import PairedText, Passage
from rebase.hub.local import LocalHub
from rebase.lora.config import AdapterConfig
from rebase.lora.low_rank import LowRank, Role, Site
from rebase.lora.reader import read_adapter
from rebase.methods.base import SiteMaps, SitePair
from rebase.methods.cast.params import CastParams
from rebase.models.causal_lm import CausalLM, with_deltas
from rebase.report.progress import NullReporter
from rebase.runtime import CHECKPOINT_S, Runtime
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.states import Phase
from rebase.training.cast import _CastTrainer, train_cast_maps
from rebase.training.cast_cache import CastMapsResult, get_or_train_maps
from rebase.training.cast_maps import TrainableMaps, TrainableUpdates
from rebase.training.losses import SharedTokenIds
from rebase.training.teacher_dataset import TeacherDataset
from rebase.training.vocab_chunks import compute_final_states, compute_listed_logprobs, compute_logits
from support.cast_helpers import wrap
from support.tiny_models import (
    TINY_CONFIGS,
    FolderReader,
    save_adapter,
    save_base,
    tiny_model,
    token_batch,
    weights_of,
)

CHARACTERS = ["Ġ", *(chr(code) for code in range(33, 127))]
TEXT = "\n\n".join(
    f"Line {n} of a text: {n * n} words, {chr(65 + n)}! Who reads ({n}) of them, {'never ' * (n % 3)}asks."
    for n in range(26)
)
WIDER: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 6},
    "mistral": {"num_key_value_heads": 4, "intermediate_size": 40},
    "gpt2": {"n_embd": 48, "n_layer": 3, "n_head": 6},
}
MODULES = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}
SHORT = {"steps": 12, "tokens": 48, "learning_rate": 1e-2, "warmup": 2, "evaluate_every": 4}


@dataclass(frozen=True)
class BasePairRepos:
    """Two bases and two adapters of the first, as repos."""

    hub: Path
    families: tuple[str, str]

    @property
    def target(self) -> Any:
        """The target as transformers loads it."""
        return AutoModelForCausalLM.from_pretrained(self.hub / "acme/new").eval()

    def tools(self, home: Path, model_bytes: int | None, checkpoint_s: float = CHECKPOINT_S) -> Runtime:
        """Cache and scratch in `home`."""
        return Runtime(
            LocalHub(self.hub),
            FactorCache(home / "cache", 2**28),
            torch.device("cpu"),
            scratch_dir=home / "scratch",
            model_bytes=model_bytes,
            checkpoint_s=checkpoint_s,
        )

    def cast(
        self,
        home: Path,
        out: str,
        adapter: str = "acme/skill",
        watch: NullReporter | None = None,
        *,
        model_bytes: int | None = None,
        checkpoint_s: float = CHECKPOINT_S,
        **settings: Any,
    ) -> ConversionResult:
        """As `rebase transfer` runs it; warnings of the pre-check do not stop it."""
        body = {
            "adapter": {"repo_id": adapter},
            "source": {"repo_id": "acme/old"},
            "target": {"repo_id": "acme/new"},
            "method": {"name": "cast", **SHORT, **settings},
            "output": {"dtype": "float32"},
            "precheck": {"on_incompatible": "warn"},
        }
        text = self.hub.parent / "text.txt"
        plan = plan_conversion(ConversionRequest.model_validate(body), "convert", corpus_file=text)
        tools = self.tools(home, model_bytes, checkpoint_s)
        found = run_conversion(plan, tools, watch or NullReporter(), home / out, marker=None)
        assert isinstance(found, ConversionResult)
        return found


def make_repos(root: Path, source: str, target: str) -> BasePairRepos:
    """The target of other sizes, with the same letters at other ids."""
    hub = root / "hub"
    save_base(hub / "acme/old", source, seed=0)
    save_base(hub / "acme/new", target, seed=5, **WIDER[target])
    order = [CHARACTERS[(7 * at) % len(CHARACTERS)] for at in range(len(CHARACTERS))]
    for repo, words in (("old", CHARACTERS), ("new", order)):
        (hub / f"acme/{repo}/tokenizer.json").write_text(json.dumps(byte_level_tokenizer(words)))
    lora = {"r": 4, "lora_alpha": 6, "fan_in_fan_out": source == "gpt2", "target_modules": MODULES[source]}
    for seed, name in ((1, "skill"), (2, "other")):
        save_adapter(hub / f"acme/{name}", tiny_model(source, seed=0), seed=seed, **lora)
    (root / "text.txt").write_text(TEXT)
    return BasePairRepos(hub, (source, target))


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> BasePairRepos:
    return make_repos(tmp_path_factory.mktemp("llamas"), "llama", "llama")


@pytest.fixture(scope="module")
def trained(llamas: BasePairRepos, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ConversionResult]:
    """A home in which `acme/skill` was carried."""
    home = tmp_path_factory.mktemp("trained")
    return home, llamas.cast(home, "out")


def bytes_of(found: ConversionResult) -> bytes:
    assert found.folder is not None
    return (found.folder / "adapter_model.safetensors").read_bytes()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[SitePair, SiteMaps]]:
    """The heads of the last run, whole, as they left the training."""
    kept: dict[SitePair, SiteMaps] = {}

    def watched(*args: Any) -> CastMapsResult:
        found = get_or_train_maps(*args)
        kept.clear()
        kept.update({pair: found.get_site_maps(pair) for pair in args[3]})
        return found

    monkeypatch.setattr("rebase.training.run.get_or_train_maps", watched)
    return lambda: kept


@pytest.mark.parametrize("init", ["closed_form", "random"])
@pytest.mark.parametrize(
    ("source", "target"), [("llama", "mistral"), ("llama", "llama"), ("gpt2", "gpt2"), ("gpt2", "llama")]
)
def test_the_folded_adapter_computes_what_the_papers_wrapper_computes(
    source: str, target: str, init: str, tmp_path: Path, seen: Callable[[], dict[SitePair, SiteMaps]]
) -> None:
    """Other widths, depths and ways to store a weight; PEFT serves the one, plain modules the other."""
    repos = make_repos(tmp_path, source, target)
    found = repos.cast(tmp_path, "out", init=init)
    assert found.report.summary["cast_nats_carried"] < found.report.summary["cast_nats_begun"]
    ids = token_batch(len(CHARACTERS))
    with torch.inference_mode():
        alone = repos.target(ids).logits
        folded = PeftModel.from_pretrained(repos.target, str(found.folder))(ids).logits
        wrapped = wrap(repos.target, repos.hub / "acme/skill", repos.families, seen())(ids).logits
    effect = (wrapped - alone).norm()
    assert effect > 1e-2 * alone.norm()
    assert float((folded - wrapped).norm() / effect) < 1e-4
    assert {row.target for row in found.report.sites} == {str(pair.target) for pair in seen()}


def test_a_whole_head_learns_only_where_the_adapter_reads_and_writes() -> None:
    """What is left out of training has no gradient: M_in's lies in the rows of A, M_out's in the columns of
    B."""
    model = tiny_model("llama", seed=3)
    text = CausalLM(model, None, weights_of(model), torch.device("cpu"), None, ())  # type: ignore[arg-type]
    noise = torch.Generator().manual_seed(0)
    A, B = torch.randn(3, 24, generator=noise), torch.randn(20, 3, generator=noise)
    M_in, M_out = torch.randn(24, 32, generator=noise), torch.randn(32, 20, generator=noise)
    for head in (M_in, M_out):
        head.requires_grad_()
    with with_deltas(text, {Site(0, Role.Q): LowRank(M_out @ B, A @ M_in)}):
        model(token_batch()).logits.square().mean().backward()
    assert M_in.grad is not None
    assert M_out.grad is not None
    V, U = (torch.linalg.qr(basis).Q for basis in (A.T, B))
    torch.testing.assert_close(V @ (V.T @ M_in.grad), M_in.grad)
    torch.testing.assert_close((M_out.grad @ U) @ U.T, M_out.grad)


def test_what_is_trained_are_the_same_heads_however_the_update_was_factored() -> None:
    noise = torch.Generator().manual_seed(0)
    A, B, G = (torch.randn(*shape, generator=noise) for shape in ((3, 24), (20, 3), (3, 3)))
    M_in, M_out = torch.randn(24, 16, generator=noise), torch.randn(12, 20, generator=noise)
    student = TrainableMaps(LowRank(B, A), M_in, M_out)
    with torch.no_grad():
        for leaf in (student.E, student.F):
            leaf.copy_(torch.randn(leaf.shape, generator=noise))
    heads = student.to_trained_maps().to_site_maps(M_in, M_out)
    update = TrainableUpdates({Site(0, Role.Q): [student, student]})[Site(0, Role.Q)]

    whole = heads.M_out @ (B @ G) @ torch.linalg.inv(G) @ A @ heads.M_in
    torch.testing.assert_close(update.B @ update.A, 2 * whole, rtol=1e-4, atol=1e-3)
    outside = torch.eye(24) - heads.input_basis @ heads.input_basis.T
    torch.testing.assert_close(outside @ heads.M_in, outside @ M_in, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", sorted(TINY_CONFIGS))
def test_logits_made_from_final_states_are_the_models_own(family: str) -> None:
    overrides = {"final_logit_softcapping": 3.0} if family.startswith("gemma") and family != "gemma" else {}
    model = tiny_model(family, **overrides)
    text = CausalLM(model, None, weights_of(model), torch.device("cpu"), None, ())  # type: ignore[arg-type]
    ids = token_batch()[0]
    with torch.inference_mode():
        torch.testing.assert_close(
            compute_logits(text, compute_final_states(text, ids)), model(ids[None]).logits[0]
        )


def test_logits_made_in_parts_have_the_gradient_of_the_whole() -> None:
    model = tiny_model("gemma2")
    text = CausalLM(model, None, weights_of(model), torch.device("cpu"), None, ())  # type: ignore[arg-type]
    shared, columns = torch.arange(3, 80), torch.arange(12).reshape(6, 2)

    def found(max_logits: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        states = torch.linspace(-1, 1, 6 * 32).reshape(6, 32).requires_grad_()
        said = compute_listed_logprobs(text, states, shared, columns, 2.0, max_logits=max_logits)
        (said.exp() * torch.arange(3)).sum().backward()  # type: ignore[no-untyped-call]
        assert states.grad is not None
        return said.detach(), states.grad

    for ours, theirs in zip(found(max_logits=2 * 96), found(), strict=True):
        torch.testing.assert_close(ours, theirs)


class StopsAt(NullReporter):
    """A worker that is told to stop."""

    def __init__(self, phase: Phase, after: int) -> None:
        self.phase, self.after = phase, after

    def update(self, phase: Phase, done: int = 0, total: int | None = None, unit: str | None = None) -> None:
        if phase is self.phase and unit != "sites" and done >= self.after:
            raise Cancelled("Stopped.")


@pytest.mark.parametrize(("phase", "after"), [(Phase.COLLECTING, 60), (Phase.TRAINING, 7)])
def test_a_worker_that_takes_over_goes_on_and_ends_with_the_same_bytes(
    phase: Phase, after: int, llamas: BasePairRepos, trained: tuple[Path, ConversionResult], tmp_path: Path
) -> None:
    with pytest.raises(Cancelled):
        llamas.cast(tmp_path, "first", watch=StopsAt(phase, after), checkpoint_s=0.0)
    left = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "scratch").rglob("source-*")}
    assert left
    again = llamas.cast(tmp_path, "out")
    assert bytes_of(again) == bytes_of(trained[1])
    assert again.report.to_json() == trained[1].report.to_json()
    assert not any((tmp_path / "scratch" / "training").iterdir())


def test_another_adapter_of_the_pair_takes_the_heads_and_trains_nothing(
    llamas: BasePairRepos, trained: tuple[Path, ConversionResult]
) -> None:
    home, first = trained
    found = llamas.cast(home, "second", "acme/other", StopsAt(Phase.TRAINING, 0), reuse=True)

    assert first.report.cast_heads_trained_on == first.report.adapter
    assert found.report.cast_heads_trained_on == first.report.adapter
    assert found.report.summary["cast_reused"] == 1.0
    assert first.report.summary["reads_trained.min"] == pytest.approx(1.0)
    assert 0.0 < found.report.summary["reads_trained.mean"] < 0.7
    assert bytes_of(found) != bytes_of(first)
    assert any("trained with another adapter" in line for line in found.report.caveats)
    assert not any("trained with another adapter" in line for line in first.report.caveats)


def test_the_same_adapter_again_gets_the_same_bytes_and_report_without_training(
    llamas: BasePairRepos, trained: tuple[Path, ConversionResult]
) -> None:
    home, first = trained
    again = llamas.cast(home, "again", watch=StopsAt(Phase.TRAINING, 0))
    assert bytes_of(again) == bytes_of(first)
    assert again.report.to_json() == first.report.to_json()


@pytest.mark.parametrize(
    "settings", [{"reuse": False}, {"seed": 1}, {"objective": "distribution"}, {"temperature": 2.0}]
)
def test_heads_of_other_settings_or_that_are_not_wanted_are_left_alone(
    settings: dict[str, Any], llamas: BasePairRepos, trained: tuple[Path, ConversionResult]
) -> None:
    with pytest.raises(Cancelled):
        llamas.cast(
            trained[0], "never", "acme/other", StopsAt(Phase.TRAINING, 0), **{"reuse": True, **settings}
        )


def test_heads_of_which_some_were_evicted_are_trained_again_and_kept(
    llamas: BasePairRepos, trained: tuple[Path, ConversionResult], tmp_path: Path
) -> None:
    """What is left would move a part of the sites by other maps than the figures are of."""
    shutil.copytree(trained[0] / "cache", tmp_path / "cache")
    keys = [entry.key for entry in llamas.tools(tmp_path, None).cache.list_entries() if entry.key]
    heads = [key for key in keys if " of acme/skill@" in key.canonical]
    next((tmp_path / "cache").rglob(f"{heads[0].digest}*")).unlink()
    with pytest.raises(Cancelled):
        llamas.cast(tmp_path, "other", "acme/other", StopsAt(Phase.TRAINING, 0), reuse=True)
    again = llamas.cast(tmp_path, "again")
    assert bytes_of(again) == bytes_of(trained[1])
    llamas.cast(tmp_path, "third", watch=StopsAt(Phase.TRAINING, 0))


def test_heads_of_an_adapter_that_the_job_may_not_read_are_not_used(tmp_path: Path) -> None:
    """They hold directions of it."""
    repos = make_repos(tmp_path, "llama", "mistral")
    repos.cast(tmp_path, "first")
    (repos.hub / "acme/skill").rename(tmp_path / "withdrawn")
    found = repos.cast(tmp_path, "second", "acme/other", reuse=True)
    assert found.report.cast_heads_trained_on == found.report.adapter
    assert "cast_reused" not in found.report.summary


def test_the_figures_are_of_the_sum_as_it_is_cut_where_layers_are_folded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repos = make_repos(tmp_path, "llama", "llama")
    deep = {"num_hidden_layers": 6}
    save_base(repos.hub / "acme/old", "llama", seed=0, **deep)
    lora = {"r": 4, "lora_alpha": 6, "target_modules": MODULES["llama"]}
    save_adapter(repos.hub / "acme/skill", tiny_model("llama", seed=0, **deep), seed=1, **lora)
    seen: list[tuple[CausalLM, TeacherDataset, dict[SitePair, TrainableMaps], CastParams]] = []

    def watched(
        target: CausalLM, lessons: TeacherDataset, students: Any, params: CastParams, **more: Any
    ) -> Any:
        folder = Path(shutil.copytree(lessons.folder, tmp_path / "lessons"))
        seen.append((target, replace(lessons, folder=folder), students, params))
        return train_cast_maps(target, lessons, students, params, **more)

    monkeypatch.setattr("rebase.training.cast_cache.train_cast_maps", watched)
    found = repos.cast(tmp_path, "out", fold=True)
    assert found.report.summary["fold_lost.mean"] > 0.01
    ((target, lessons, students, params),) = seen
    assert found.folder is not None
    written = read_adapter(
        AdapterConfig.parse(json.loads((found.folder / "adapter_config.json").read_text())),
        FolderReader.of(found.folder),
        target.weights,
    )
    with with_deltas(target, {site: written.delta(site) for site in written.sites}):
        apart = lessons.select_passages(held_out=True)
        measured = _CastTrainer(target, lessons, params, students).compute_divergence(apart)
    assert found.report.summary["cast_nats_carried"] == pytest.approx(measured, rel=1e-4)


def test_final_states_may_take_part(llamas: BasePairRepos, tmp_path: Path) -> None:
    both = [
        llamas.cast(tmp_path, objective, w_mse=1e-3, objective=objective)
        for objective in ("shift", "distribution")
    ]
    for found in both:
        assert found.report.summary["cast_nats_carried"] < found.report.summary["cast_nats_begun"]


def test_products_may_be_computed_in_bfloat16(
    llamas: BasePairRepos, trained: tuple[Path, ConversionResult], tmp_path: Path
) -> None:
    found = llamas.cast(tmp_path, "out", precision="bfloat16")
    assert found.report.summary["cast_nats_carried"] < found.report.summary["cast_nats_begun"]
    assert bytes_of(found) != bytes_of(trained[1])


def test_a_target_that_does_not_fit_is_refused(llamas: BasePairRepos, tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="does not fit"):
        llamas.cast(tmp_path, "out", model_bytes=1, positions=256)


def test_a_source_that_does_not_fit_beside_the_target_changes_nothing(
    llamas: BasePairRepos, trained: tuple[Path, ConversionResult], tmp_path: Path
) -> None:
    """Room for the larger base alone: each is loaded in its turn."""
    size = (llamas.hub / "acme/new/model.safetensors").stat().st_size
    assert bytes_of(llamas.cast(tmp_path, "out", model_bytes=size)) == bytes_of(trained[1])


def test_an_update_that_is_no_nearer_than_none_is_not_published(
    llamas: BasePairRepos, tmp_path: Path
) -> None:
    with pytest.raises(TrainingFailed, match="target alone") as caught:
        llamas.cast(tmp_path, "out", init="random", steps=1, learning_rate=1e-9)
    assert caught.value.hint


def test_a_text_of_one_sequence_leaves_nothing_to_measure_with(tmp_path: Path) -> None:
    at = torch.arange(1, 9)
    text = PairedText((Passage(tuple(range(9)), tuple(range(9)), at, at, held_out=False),), 1.0, 1.0, "")
    lessons = TeacherDataset(
        tmp_path, "", text, SharedTokenIds(at, at), 4, 1.0, use_shift=True, with_states=False
    )
    with pytest.raises(TrainingFailed, match="too short") as caught:
        train_cast_maps(None, lessons, {}, CastParams(), coverage=1.0, progress=NullReporter())  # type: ignore[arg-type]
    assert caught.value.pointer == "/corpus"
