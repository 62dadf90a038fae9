"""What a model writes: seeded, the same as transformers' own generation, scored, and without refuse."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from examples.text.queries import generate_examples
from rebase.conversion.collect_activations import make_base_pair
from rebase.errors import Cancelled, TrainingFailed
from rebase.hub.local import LocalHub
from rebase.methods.distill.params import DistillParams
from rebase.models.base_pair import BasePair
from rebase.models.causal_lm import CausalLM, load_base_model, with_deltas
from rebase.models.generation import encode_with_bos, generate
from rebase.models.model_reader import open_model
from rebase.models.weights import ModelWeights
from rebase.report.progress import NullReporter
from rebase.schemas.repos import RepoRef
from rebase.schemas.states import Phase
from rebase.training.sample_generation import generate_samples
from rebase.training.samples import SampleSet, find_rejection_reason
from support.bundled import bundled, sql_adapter
from support.tiny_models import TINY_CONFIGS, save_base
from support.tiny_repos import tokenizer

PROMPTS = tuple(item.prompt for item in generate_examples("train", 12, 5))
PARAMS = DistillParams(prompts=PROMPTS, tokens=600, length=32)


@pytest.fixture(scope="module")
def source() -> CausalLM:
    return bundled("harbor-1").text


@pytest.fixture(scope="module")
def asked(source: CausalLM) -> list[list[int]]:
    return [encode_with_bos(source, prompt).ids for prompt in PROMPTS]


def drawn(base: CausalLM, prompts: list[list[int]], **changes: Any) -> list[list[int]]:
    return generate(base, prompts, 24, **{"temperature": 1.0, "top_p": 1.0, "seed": 0, **changes})


def generated(base: CausalLM, prompt: list[int], most: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = base.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False,
        pad_token_id=base.eos_ids[0],
    )  # fmt: skip
    return [int(id_) for id_ in out[0, len(prompt) :]]


def test_at_temperature_zero_it_writes_what_transformers_generates(
    source: CausalLM, asked: list[list[int]]
) -> None:
    """With prompts of many lengths side by side, of which some end early, and with an adapter."""
    assert len({len(prompt) for prompt in asked}) > 3
    with with_deltas(source, sql_adapter()):
        ours = generate(source, asked, 40, temperature=0.0, top_p=1.0, seed=0)
        assert ours == [generated(source, prompt, 40) for prompt in asked]
    assert len({len(ids) for ids in ours}) > 1


@pytest.mark.parametrize("family", sorted(TINY_CONFIGS))
def test_every_family_writes_what_transformers_generates(family: str, tmp_path: Path) -> None:
    save_base(tmp_path / "acme" / "base", family, seed=3)
    (tmp_path / "acme" / "base" / "tokenizer.json").write_text(json.dumps(tokenizer(96)))
    hub = LocalHub(tmp_path)
    config, reader, words = open_model(hub, hub.resolve(RepoRef(repo_id="acme/base")))
    assert words is not None
    base = load_base_model(ModelWeights(config, reader), reader, words, torch.device("cpu"))
    prompts = [[5, 9, 11], [7], [4, 4, 8, 30, 2, 50, 60]]

    ours = generate(base, prompts, 12, temperature=0.0, top_p=1.0, seed=0)

    assert ours == [generated(base, prompt, 12) for prompt in prompts]


def test_writing_stops_where_generation_config_alone_ends_a_turn(tmp_path: Path) -> None:
    for name in ("source", "target"):
        save_base(tmp_path / "acme" / name, "llama", seed=3)
        (tmp_path / "acme" / name / "tokenizer.json").write_text(json.dumps(tokenizer(96)))
    hub = LocalHub(tmp_path)

    def bases() -> BasePair:
        pinned = [hub.resolve(RepoRef(repo_id=f"acme/{name}")) for name in ("source", "target")]
        found = [open_model(hub, repo) for repo in pinned]
        parts = {"pinned": SimpleNamespace(source=pinned[0], target=pinned[1])}
        for side, (config, reader, words) in zip(("source", "target"), found, strict=True):
            parts |= {
                side: ModelWeights(config, reader),
                f"{side}_reader": reader,
                f"{side}_tokenizer": words,
            }
        tools = SimpleNamespace(hub=hub, device=torch.device("cpu"), model_bytes=None)
        return make_base_pair(SimpleNamespace(**parts), tools)  # type: ignore[arg-type]

    whole = generate(bases().get_model("source"), [[5, 9, 11]], 12, temperature=0.0, top_p=1.0, seed=0)[0]
    turn = {"eos_token_id": [2, whole[4]]}
    (tmp_path / "acme" / "source" / "generation_config.json").write_text(json.dumps(turn))
    source = bases().get_model("source")
    ours = generate(source, [[5, 9, 11]], 12, temperature=0.0, top_p=1.0, seed=0)[0]

    assert ours == whole[: whole.index(whole[4]) + 1] != whole
    source.model.generation_config.eos_token_id = turn["eos_token_id"]
    assert ours == generated(source, [5, 9, 11], 12)


def test_one_seed_writes_one_text_and_another_seed_another(source: CausalLM, asked: list[list[int]]) -> None:
    first = drawn(source, asked)

    assert drawn(source, asked) == first
    assert drawn(source, asked, seed=1) != first


def test_a_small_top_p_leaves_the_likeliest_token_alone(source: CausalLM, asked: list[list[int]]) -> None:
    assert drawn(source, asked, top_p=1e-6) == drawn(source, asked, temperature=0.0)


def test_tokens_are_drawn_as_often_as_the_model_says(source: CausalLM, asked: list[list[int]]) -> None:
    prompt = asked[0]
    chances = source.model(input_ids=torch.tensor([prompt])).logits[0, -1].detach().softmax(-1)
    ids = generate(source, [prompt] * 1000, 1, temperature=1.0, top_p=1.0, seed=3)
    counts = Counter(row[0] for row in ids)

    top = chances.topk(5)
    for chance, id_ in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        assert counts[id_] / 1000 == pytest.approx(chance, abs=4 * (chance * (1 - chance) / 1000) ** 0.5)


def test_scores_are_the_difference_of_both_models_log_probabilities(source: CausalLM) -> None:
    deltas = sql_adapter()
    found = generate_samples(source, deltas, PARAMS, progress=NullReporter())

    for sample in found.samples[:6]:
        encoded = encode_with_bos(source, sample.text)
        ids = torch.tensor([encoded.ids])
        logs = []
        for on in ({}, deltas):
            with torch.no_grad(), with_deltas(source, on):
                logs.append(source.model(input_ids=ids).logits[0].log_softmax(-1))
        places = [at for at, span in enumerate(encoded.offsets) if span in sample.spans and at > 0]
        places = places[-len(sample.spans) :]
        expected = [float(logs[1][at - 1, ids[0, at]] - logs[0][at - 1, ids[0, at]]) for at in places]
        assert sample.scores == pytest.approx(expected, abs=1e-3)
        assert sample.text[sample.spans[0][0] : sample.spans[-1][1]] == sample.text[sample.spans[0][0] :]
        assert sample.spans[0][1] > sample.prompt
    assert sum(map(sum, (sample.scores for sample in found.samples))) > 0  # the adapter likes its own text


@pytest.mark.parametrize(
    ("text", "ids", "prompted", "expected"),
    [
        ("  \n", [1, 2, 3], True, "empty"),
        ("a b", [1, 2, 3], False, "short"),
        ("a b", [1, 2, 3], True, None),
        ("caf\ufffd and so on for a while", list(range(20)), False, "broken"),
        ("ho " * 40, [5] * 40, False, "repeats"),
        ("ab cd " * 20, [1, 2, 3] * 20, True, "repeats"),
        ("a text, then a loop", [*range(100), *[7, 8] * 40], True, "repeats"),
        ("a text", list(range(100)), False, None),
    ],
)
def test_refuse_is_told_from_text(text: str, ids: list[int], prompted: bool, expected: str | None) -> None:
    assert find_rejection_reason(text, ids, has_prompt=prompted) == expected


def test_no_text_comes_twice_and_what_was_dropped_is_counted(source: CausalLM) -> None:
    found = generate_samples(source, sql_adapter(), PARAMS, progress=NullReporter())

    assert len({sample.text for sample in found.samples}) == len(found.samples)
    assert len(found.samples) + sum(found.dropped.values()) == found.batch_count * -(-600 // 32)
    assert found.dropped["twice"] > 0
    assert any(sample.ended for sample in found.samples)


class Stopping(NullReporter):
    def __init__(self, calls: int) -> None:
        self.left = calls

    def update(self, phase: Phase, done: int = 0, total: int | None = None, unit: str | None = None) -> None:
        assert (phase, unit) == (Phase.COLLECTING, "tokens")
        self.left -= 1
        if self.left < 0:
            raise Cancelled("enough")


@pytest.mark.parametrize("damage", [0, 30])
def test_writing_goes_on_after_the_last_batch_that_was_kept(
    source: CausalLM, tmp_path: Path, damage: int
) -> None:
    deltas, path = sql_adapter(), tmp_path / "samples.jsonl"
    whole = generate_samples(source, deltas, PARAMS, progress=NullReporter())
    with pytest.raises(Cancelled):
        generate_samples(source, deltas, PARAMS, progress=Stopping(2), path=path)
    kept = path.read_bytes()
    assert kept.count(b"\n") == 2 < whole.batch_count
    path.write_bytes(kept[: len(kept) - damage])

    assert generate_samples(source, deltas, PARAMS, progress=NullReporter(), path=path) == whole
    assert generate_samples(source, deltas, PARAMS, progress=Stopping(1), path=path) == whole


def test_samples_of_other_settings_are_not_taken(source: CausalLM, tmp_path: Path) -> None:
    deltas, path = sql_adapter(), tmp_path / "samples.jsonl"
    other = PARAMS.model_copy(update={"seed": 1})
    generate_samples(source, deltas, other, progress=NullReporter(), path=path)
    expected = generate_samples(source, deltas, PARAMS, progress=NullReporter())

    assert generate_samples(source, deltas, PARAMS, progress=NullReporter(), path=path) == expected


def test_an_adapter_that_writes_nothing_usable_is_a_typed_error(source: CausalLM) -> None:
    greedy = DistillParams(tokens=256, length=16, temperature=0.0)  # from nothing, one text is the likeliest

    with pytest.raises(TrainingFailed, match="no usable training text") as failed:
        generate_samples(source, {}, greedy, progress=NullReporter())
    assert failed.value.pointer == "/method/prompts"


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("spoilt", ["adapter", "base"])
def test_a_model_that_gives_no_numbers_is_named(
    source: CausalLM, monkeypatch: pytest.MonkeyPatch, spoilt: str, top_p: float
) -> None:
    deltas = {site: delta.scaled(1e36) for site, delta in sql_adapter().items()}
    if spoilt == "base":
        deltas = {}
        scale = source.model.base_model.norm.weight
        monkeypatch.setattr(scale, "data", scale.detach() * torch.nan)
    params = DistillParams(prompts=PROMPTS[:2], tokens=256, length=16, top_p=top_p)
    with pytest.raises(TrainingFailed, match="source with its adapter produced probabilities that") as failed:
        generate_samples(source, deltas, params, progress=NullReporter())
    assert failed.value.pointer == "/adapter"
    assert "works on its own base" in str(failed.value.hint)


def test_it_writes_from_nothing_too(source: CausalLM) -> None:
    params = DistillParams(tokens=256, length=24)
    found: SampleSet = generate_samples(source, sql_adapter(), params, progress=NullReporter())

    assert found.tokens >= 256
    assert all(sample.prompt == 0 for sample in found.samples)
