"""Both bases read one text: what is taken from them, what is summed, what is kept for the next adapter."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from benchmarks.synthetic import byte_level_tokenizer
from rebase.errors import UnsupportedModel
from rebase.evidence.collector import ActivationCollector
from rebase.evidence.hook_points import HookPoint, get_hook_pair, get_hook_point
from rebase.evidence.hooks import capture_layers, capture_rows
from rebase.evidence.layer_similarity import measure_similarity
from rebase.evidence.paired_text import WINDOW, PairedText, pair_text
from rebase.lora.low_rank import LowRank, Role, Side, Site
from rebase.methods.base import PORTS, SitePair
from rebase.models.base_pair import BaseCheckpoint, BasePair
from rebase.models.causal_lm import CausalLM, load_base_model, load_tokenizer, with_deltas
from rebase.models.weights import ModelWeights
from support.synthetic_sites import relative_error
from support.tiny_models import TINY_CONFIGS, FolderReader, tiny_model, weights_of

CPU = torch.device("cpu")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = [*LETTERS, "Ġ", ".", ",", *(c.upper() for c in LETTERS)]
TEXT = "".join(chr(97 + (7 * n * n + 3 * n) % 26) + (" " if n % 5 == 4 else "") for n in range(3000))


def _stored(model, tokens=WORDS) -> BaseCheckpoint:
    weights = weights_of(model)
    return BaseCheckpoint(weights, weights._reader, byte_level_tokenizer(tokens))


def _bases(room: int | None = None, **changes) -> BasePair:
    source = tiny_model("llama", seed=1)
    target = tiny_model("gpt_neox", seed=2, hidden_size=48, num_hidden_layers=3)
    return BasePair(_stored(source), _stored(target, list(reversed(WORDS))), CPU, room, **changes)


def _text(bases: BasePair, most: int = 1500) -> PairedText:
    return pair_text(bases.get_tokenizer("source"), bases.get_tokenizer("target"), [TEXT], most)


def _pairs(*roles: Role) -> list[SitePair]:
    return [
        SitePair(Site(layer, role), Site(layer, role), (1, 1), (1, 1)) for layer in range(2) for role in roles
    ]


def _collector(
    bases: BasePair, tmp_path: Path, budget: int = 2**30, keep_rows: int = 0
) -> ActivationCollector:
    return ActivationCollector(bases, _text(bases), budget, tmp_path, lambda done, total: None, keep_rows)


@pytest.mark.parametrize("model_type", list(TINY_CONFIGS))
def test_what_a_site_writes_is_its_weight_times_what_it_reads(model_type: str) -> None:
    """Fused, transposed and interleaved modules alike; biases are left out."""
    stored = _stored(tiny_model(model_type, seed=3))
    base = load_base_model(stored.weights, stored.reader, stored.tokenizer or {}, CPU)
    text = pair_text(
        words := load_tokenizer(stored.tokenizer or {}, stored.weights.config), words, [TEXT], 100
    )
    others = {Role.GATE, Role.UP}  # these are looked at further on
    sites = [site for site in stored.weights.sites if site.role not in others]
    found = capture_rows(
        base, "source", text.passages[0], [get_hook_point(s, port) for s in sites for port in PORTS]
    )
    for site in sites:
        x, y = found[get_hook_point(site, "in")], found[get_hook_point(site, "out")]
        assert x.shape == (text.passages[0].num_positions, stored.weights.shape(site)[1])
        assert relative_error(y, x @ stored.weights.weight(site).T) < 1e-5, site


@pytest.mark.parametrize("model_type", ["llama", "phi3", "gpt2", "gpt_neox"])
def test_an_update_in_memory_is_the_update_in_the_weights(model_type: str) -> None:
    """The hooks that add B (A x) against a model whose weights were changed."""
    model = tiny_model(model_type, seed=4)
    stored = _stored(model)
    base = load_base_model(stored.weights, stored.reader, stored.tokenizer or {}, CPU)
    noise = torch.Generator().manual_seed(1)
    deltas = {}
    for site in stored.weights.sites:
        o, i = stored.weights.shape(site)
        deltas[site] = LowRank(
            torch.randn(o, 2, generator=noise) * 0.1, torch.randn(2, i, generator=noise) * 0.1
        )
        module, rows = base.get_module(site), base.get_output_rows(site)
        with torch.no_grad():
            weight = module.weight.T if model_type == "gpt2" else module.weight
            change = deltas[site].B @ deltas[site].A
            weight[slice(None) if rows is None else rows] += change
    ids = torch.arange(1, 30)[None]
    merged = base.model(ids).logits
    again = _stored(tiny_model(model_type, seed=4))
    plain = load_base_model(again.weights, again.reader, again.tokenizer or {}, CPU)
    with with_deltas(plain, deltas):
        assert relative_error(plain.model(ids).logits, merged) < 1e-5
    assert relative_error(plain.model(ids).logits, merged) > 1e-2  # and it is gone afterwards


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt2", "gpt_neox"])
def test_a_base_that_is_read_layer_by_layer_computes_the_same(model_type: str) -> None:
    stored = _stored(tiny_model(model_type, seed=5))
    ids = torch.arange(3, 40)[None]
    whole = load_base_model(stored.weights, stored.reader, stored.tokenizer or {}, CPU)
    streamed = load_base_model(stored.weights, stored.reader, stored.tokenizer or {}, CPU, streamed=True)
    assert all(parameter.is_meta for parameter in streamed.model.parameters())
    with torch.inference_mode():
        assert relative_error(streamed.model(ids).logits, whole.model(ids).logits) < 1e-6
    assert all(parameter.is_meta for parameter in streamed.model.parameters())


@pytest.mark.parametrize(
    ("model_type", "ours", "stored_as"),
    [("gpt2", r"^transformer\.", ""), ("gpt_neox", r"^lm_head\.", "embed_out.")],
)
def test_a_streamed_base_may_be_stored_under_other_names(model_type: str, ours: str, stored_as: str) -> None:
    """As these two are on the Hub."""
    stored = _stored(tiny_model(model_type, seed=5))
    named = {re.sub(ours, stored_as, name): tensor for name, tensor in stored.reader.tensors.items()}
    named.pop("lm_head.weight", None)
    ids = torch.arange(3, 40)[None]
    whole, streamed = (
        load_base_model(stored.weights, FolderReader(named), stored.tokenizer or {}, CPU, streamed=streamed)
        for streamed in (False, True)
    )
    with torch.inference_mode():
        assert relative_error(streamed.model(ids).logits, whole.model(ids).logits) < 1e-6


@pytest.mark.parametrize("room", [2**30, 2])
@pytest.mark.parametrize(
    ("side", "name"), [("source", "model.norm.weight"), ("target", "gpt_neox.final_layer_norm.bias")]
)
def test_a_base_whose_weights_are_not_complete_is_named(side: Side, name: str, room: int) -> None:
    bases = _bases(room)
    del bases.get_checkpoint(side).reader.tensors[name]
    with pytest.raises(UnsupportedModel, match=name) as caught:
        bases.get_model(side)
    assert caught.value.pointer == f"/{side}"


def test_positions_pair_where_both_tokenizers_end_a_token() -> None:
    """The second tokenizer joins letters; only ends that both have are pairs, and the first token is none."""
    letters = byte_level_tokenizer(WORDS)
    joined = byte_level_tokenizer([*WORDS, "ab", "cd"])
    joined["model"]["merges"] = ["a b", "c d"]
    config = tiny_model("llama").config.to_dict()
    text = pair_text(load_tokenizer(letters, config), load_tokenizer(joined, config), ["xabcdxab"], 100)
    (passage,) = text.passages
    assert passage.source_positions.tolist() == [2, 4, 5, 7]
    assert passage.target_positions.tolist() == [1, 2, 3, 4]
    assert text.source_coverage == pytest.approx(4 / 8)
    assert text.target_coverage == pytest.approx(4 / 5)


@pytest.mark.parametrize("sequence", [False, True])
def test_a_token_of_spaces_alone_stands_for_its_spaces(sequence: bool) -> None:
    """Also where the tokenizer itself reports trimmed offsets, as GPT-NeoX's does."""
    tokenizer = byte_level_tokenizer([*WORDS, "ĠĠ"])
    tokenizer["model"]["merges"] = ["Ġ Ġ"]
    trims = dict(tokenizer["pre_tokenizer"])
    tokenizer["post_processor"] = {"type": "Sequence", "processors": [trims]} if sequence else trims
    words = load_tokenizer(tokenizer, {})
    assert words.encode("a  b   c").offsets == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 6), (6, 7), (7, 8)]
    (passage,) = pair_text(words, words, ["a  b   c"], 100).passages
    assert passage.num_positions == 6


def test_a_long_document_is_cut_into_windows_and_every_eighth_is_held_out() -> None:
    bases = _bases()
    text = _text(bases, most=10**6)
    assert all(len(p.source_ids) <= WINDOW for p in text.passages)
    assert [p.held_out for p in text.passages] == [n % 8 == 1 for n in range(len(text.passages))]
    assert text.digest == _text(_bases(), most=10**6).digest
    assert text.digest != _text(bases, most=600).digest


def test_few_positions_leave_a_passage_to_measure_with() -> None:
    words = load_tokenizer(byte_level_tokenizer(WORDS), {})
    text = pair_text(words, words, [TEXT], 16)
    assert [passage.held_out for passage in text.passages] == [False, True]


def test_sums_do_not_depend_on_how_many_passes_gather_them(tmp_path: Path) -> None:
    places = [get_hook_pair(pair, port) for pair in _pairs(Role.Q, Role.DOWN) for port in PORTS]
    passes = []
    found = []
    for budget in (2**30, 1):
        collector = _collector(_bases(), tmp_path, budget, keep_rows=64)
        collector.report_progress = lambda done, total, budget=budget: (
            passes.append(budget) if done == 0 else None
        )
        collector.plan(places)
        found.append([collector.get(place) for place in places])
    assert passes.count(2**30) == 1
    assert passes.count(1) == len(set(places))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.moments.cross, other.moments.cross)
        assert torch.equal(one.rows.source, other.rows.source)
        assert torch.equal(one.held_out.target, other.held_out.target)


def test_bases_that_do_not_fit_together_take_turns_and_give_the_same_sums(tmp_path: Path) -> None:
    places = [get_hook_pair(pair, port) for pair in _pairs(Role.Q, Role.UP) for port in PORTS]
    both, turns = _bases(), _bases(room=max(_bases().source.num_bytes, _bases().target.num_bytes))
    assert both.fit_together
    assert not turns.fit_together
    one, other = (_collector(bases, tmp_path) for bases in (both, turns))
    for collector in (one, other):
        collector.spill_bytes = 60_000  # several chunks
        collector.plan(places)
    for place in places:
        assert torch.equal(one.get(place).moments.cross, other.get(place).moments.cross)
        assert torch.equal(one.get(place).moments.target, other.get(place).moments.target)
    assert list(tmp_path.iterdir()) == []  # rows that waited on disk are gone


def test_a_base_larger_than_memory_is_streamed(tmp_path: Path) -> None:
    place = get_hook_pair(_pairs(Role.V)[0], "out")
    whole, tight = (_collector(_bases(room), tmp_path) for room in (None, 1))
    for collector in (whole, tight):
        collector.plan([place])
    assert torch.equal(whole.get(place).moments.cross, tight.get(place).moments.cross)


def test_memory_for_sums_does_not_grow_with_the_text(tmp_path: Path) -> None:
    bases = _bases()
    place = get_hook_pair(_pairs(Role.Q)[0], "in")
    short, long = (
        ActivationCollector(bases, _text(bases, most), 2**30, tmp_path, lambda done, total: None, 32)
        for most in (600, 2400)
    )
    one, other = short.get(place), long.get(place)
    assert other.moments.rows > 2 * one.moments.rows
    assert one.rows.source.shape == other.rows.source.shape == (32, 32)


def test_a_model_is_most_like_itself_layer_by_layer() -> None:
    model = tiny_model("llama", seed=1, num_hidden_layers=4)
    bases = BasePair(_stored(model), _stored(model), CPU)
    found = measure_similarity(bases, _text(bases), lambda done, total: None)
    assert found.layers == (0, 1, 2, 3)
    assert torch.allclose(found.matrix.diagonal(), torch.ones(4, dtype=torch.float64), atol=1e-6)
    assert found.compute_coverage(0.7) == 1.0


def test_the_stream_after_the_last_layer_is_what_the_final_norm_reads() -> None:
    stored = _stored(tiny_model("llama", seed=6))
    base: CausalLM = load_base_model(stored.weights, stored.reader, stored.tokenizer or {}, CPU)
    passage = _text(BasePair(stored, stored, CPU)).passages[0]
    last = capture_layers(base, "source", passage)[-1]
    with torch.inference_mode():
        logits = base.model(torch.tensor([passage.source_ids])).logits[0, passage.source_positions]
        assert relative_error(base.model.lm_head(base.model.model.norm(last)), logits) < 1e-5


def test_sites_that_read_the_same_share_a_place() -> None:
    assert get_hook_point(Site(1, Role.Q), "in") == get_hook_point(Site(1, Role.V), "in")
    assert get_hook_point(Site(1, Role.GATE), "in") == get_hook_point(Site(1, Role.UP), "in")
    assert get_hook_point(Site(1, Role.Q), "out") != get_hook_point(Site(1, Role.K), "out")
    assert get_hook_point(Site(1, Role.GATE), "out") == get_hook_point(
        Site(1, Role.DOWN), "in"
    )  # the neurons
    assert get_hook_point(Site(1, Role.O), "out") != get_hook_point(Site(1, Role.DOWN), "out")
    assert get_hook_point(Site(1, Role.O), "out", "stream") == get_hook_point(
        Site(1, Role.DOWN), "out", "stream"
    )
    assert isinstance(get_hook_point(Site(0, Role.O), "in"), HookPoint)


def test_a_base_without_a_tokenizer_says_so() -> None:
    from rebase.errors import RequestInvalid

    bases = _bases()
    bases.target = replace(bases.target, tokenizer=None)
    with pytest.raises(RequestInvalid, match=r"target base has no tokenizer\.json") as caught:
        bases.get_tokenizer("target")
    assert caught.value.pointer == "/target"
    assert json.dumps(caught.value.message)


@pytest.mark.parametrize(("outside", "wanted"), [({"eos_token_id": [1, 106]}, (1, 106)), ({}, (1,))])
def test_a_text_part_ends_its_texts_as_the_whole_config_or_its_class_says(
    outside: dict[str, list[int]], wanted: tuple[int, ...]
) -> None:
    """Gemma 3 with pictures leaves both out of `text_config`; without an end it would never stop writing."""
    stored = _stored(tiny_model("gemma3_text"))
    own = ("eos_token_id", "bos_token_id")
    text = {key: value for key, value in stored.weights.config.items() if key not in own}
    weights = ModelWeights({"model_type": "gemma3", "text_config": text} | outside, stored.reader)
    base = load_base_model(weights, stored.reader, stored.tokenizer or {}, CPU)
    assert base.eos_ids == wanted
    assert base.bos_id == AutoConfig.for_model("gemma3_text").bos_token_id


@pytest.mark.parametrize(
    ("own", "ends", "wanted"),
    [(2, (7, 2), (2, 7)), ([2, 5], (7,), (2, 5, 7)), (2, (-1, 96, 2**70), (2,)), (None, (7,), (7,))],
)
def test_a_text_also_ends_as_generation_config_says_behind_the_configs_own(
    own: object, ends: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    """The first one divides documents, and stays what it was. Ids that the model lacks end nothing."""
    stored = _stored(tiny_model("llama"))
    weights = ModelWeights({**stored.weights.config, "vocab_size": 96, "eos_token_id": own}, stored.reader)
    bases = BasePair(replace(stored, weights=weights, extra_eos_ids=ends), stored, CPU)
    assert bases.get_model("source").eos_ids == wanted


def test_the_stream_is_what_the_layer_gives_on() -> None:
    stored = _stored(tiny_model("llama", seed=6))
    base = load_base_model(stored.weights, stored.reader, stored.tokenizer or {}, CPU)
    passage = _text(BasePair(stored, stored, CPU)).passages[0]
    place = get_hook_point(Site(1, Role.O), "out", "stream")
    found = capture_rows(base, "source", passage, [place])[place]
    assert torch.equal(found, capture_layers(base, "source", passage)[1])
