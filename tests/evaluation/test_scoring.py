"""Scores of examples against transformers' own generation and a log softmax done by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.text.queries import read_task
from rebase.evaluation.loglikelihood import TextScorer
from rebase.evaluation.refusals import is_refusal, score_refusals
from rebase.evaluation.scoring import ExampleProgress, ExampleScorer, apply_deltas
from rebase.lora.low_rank import LowRank, Side
from rebase.models.causal_lm import CausalLM
from rebase.models.logprobs import PassLimits
from rebase.report.progress import NullReporter
from rebase.schemas.evaluation import EvaluationSpec
from support.bundled import bundled, sql_adapter
from support.tiny_text import tiny_text_model

ITEMS = read_task(Path(__file__).parents[2] / "examples" / "tasks" / "harbor-sql.jsonl")
EXAMPLES = [{"prompt": item.prompt, "answer": item.answer} for item in ITEMS[:24]]
FEW = 12  # of which some are answered rightly and some not


class Loaded:
    """`rebase.models.base_pair.Bases` with the bundled bases in memory."""

    def get_model(self, side: Side) -> CausalLM:
        return bundled("harbor-1" if side == "source" else "harbor-2").text


def _scorer(**spec: Any) -> ExampleScorer:
    return ExampleScorer(Loaded(), EvaluationSpec.model_validate(spec), ExampleProgress(NullReporter()))  # type: ignore[arg-type]


def _log_probabilities(base: CausalLM, text: str) -> tuple[list[float], list[tuple[int, int]]]:
    """Of each token behind the one that divides documents, one text at a time, by a plain log softmax."""
    encoded = base.tokenizer.encode(text, add_special_tokens=False)
    ids = [base.eos_ids[0], *encoded.ids]
    with torch.no_grad():
        logs = base.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [float(logs[at, id_]) for at, id_ in enumerate(encoded.ids)], encoded.offsets


def _nats(base: CausalLM, prompt: str, text: str) -> tuple[float, int]:
    logs, offsets = _log_probabilities(base, prompt + text)
    own = [log for log, (_, end) in zip(logs, offsets, strict=True) if end > len(prompt)]
    return -sum(own), len(own)


def test_nats_of_answers_are_those_of_a_log_softmax_one_text_at_a_time() -> None:
    scorer = _scorer(examples=EXAMPLES, score="likelihood")
    base = bundled("harbor-2").text
    found = scorer.score_examples("target", sql_adapter())
    with apply_deltas(base, sql_adapter()):
        for item, row in zip(ITEMS, found, strict=False):
            nats, tokens = _nats(base, item.prompt, item.answer)
            assert row["answer_nats_per_byte"] == pytest.approx(nats / len(item.answer.encode()), abs=1e-5)
            assert row["answer_nats_per_token"] == pytest.approx(nats / tokens, abs=1e-5)
            assert "exact_match" not in row
    assert scorer.get_primary_scores(found) == tuple(-row["answer_nats_per_byte"] for row in found)


def test_what_ends_an_answer_is_no_part_of_it_also_where_it_is_no_special_token() -> None:
    base = bundled("harbor-2").text
    prompts = [item.prompt for item in ITEMS[:8]]
    with apply_deltas(base, sql_adapter()):
        whole = TextScorer(base).generate_until(prompts, 64)
        brief = TextScorer(
            replace(base, eos_ids=(*base.eos_ids, base.tokenizer.token_to_id(";")))
        ).generate_until(prompts, 64)
    assert sum(";" in text for text in whole) > 4
    assert brief == [text.partition(";")[0] for text in whole]


def test_answers_are_what_transformers_itself_generates() -> None:
    base = bundled("harbor-2").text
    deltas = sql_adapter()
    wanted = []
    with apply_deltas(base, deltas):
        for item in ITEMS[:FEW]:
            ids = [base.eos_ids[0], *base.tokenizer.encode(item.prompt, add_special_tokens=False).ids]
            out = base.model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=64,
                do_sample=False,
                pad_token_id=base.eos_ids[0],
            )
            text = base.tokenizer.decode(out[0, len(ids) :].tolist(), skip_special_tokens=True)
            wanted.append(float(text.strip() == item.answer.strip()))
    found = _scorer(examples=EXAMPLES[:FEW]).measure(deltas)
    assert found == tuple(wanted)
    assert 0 < sum(found) < len(found)


def test_an_answer_is_cut_at_the_first_stop_and_trimmed() -> None:
    written = bundled("harbor-2").text
    with apply_deltas(written, sql_adapter()):
        full = TextScorer(written).generate_until([ITEMS[0].prompt], 64)[0]
    begin = full[: full.index(" FROM")]
    example = {"prompt": ITEMS[0].prompt, "answer": f"\n {begin.strip()} \n"}
    assert _scorer(examples=[example], stop=[" FROM"]).measure(sql_adapter()) == (1.0,)
    assert _scorer(examples=[example]).measure(sql_adapter()) == (0.0,)


def test_an_answer_that_is_longer_than_what_is_written_is_noted() -> None:
    scorer = _scorer(examples=EXAMPLES[:2], max_tokens=4)
    assert scorer.measure(sql_adapter()) == (0.0, 0.0)
    assert any("longer than the 4 tokens that are generated" in note for note in scorer.notes)
    whole = _scorer(examples=EXAMPLES[:2])
    whole.measure(sql_adapter())
    assert not whole.notes


def test_the_likeliest_choice_is_chosen_by_sum_or_per_byte() -> None:
    base = bundled("harbor-2").text
    prompt, choices = "The ship came from", [" the harbour with a load of timber and salt", " Riga", " a"]
    costs = [_nats(base, prompt, choice)[0] for choice in choices]
    per_byte = [cost / len(choice) for cost, choice in zip(costs, choices, strict=True)]
    whole, relative = costs.index(min(costs)), per_byte.index(min(per_byte))
    assert whole != relative

    def accuracy(label: int, **more: Any) -> float:
        example = {"prompt": prompt, "choices": choices, "label": label}
        return _scorer(examples=[example], **more).measure({})[0]

    assert [accuracy(label) for label in range(3)] == [float(label == whole) for label in range(3)]
    chosen = [accuracy(label, choices_per_byte=True) for label in range(3)]
    assert chosen == [float(label == relative) for label in range(3)]
    assert accuracy(1, score="likelihood") == pytest.approx(-per_byte[1], abs=1e-5)


def test_texts_cost_nats_per_byte_so_that_tokenizers_compare() -> None:
    base = bundled("harbor-2").text
    text = "Der Kapitän zählte die Fässer: acht – nein, neun."
    nats, _ = _nats(base, "", text)
    assert _scorer(examples=[{"text": text}]).measure({})[0] == pytest.approx(
        -nats / len(text.encode()), abs=1e-5
    )


def test_one_kind_of_score_decides_and_texts_beside_answers_are_only_reported() -> None:
    mixed = [{"text": "The ship came in."}, EXAMPLES[0], {"prompt": "a", "choices": [" b", " c"], "label": 0}]
    scorer = _scorer(examples=mixed)
    found = scorer.score_examples("target", {})
    assert set(found[0]) == {"text_nats_per_byte"}
    assert scorer.get_primary_scores(found) == (found[1]["exact_match"], found[2]["choice_accuracy"])
    assert len(_scorer(examples=mixed, score="likelihood").measure({})) == 3


def test_measuring_is_deterministic_leaves_the_base_alone_and_keeps_the_order() -> None:
    scorer = _scorer(examples=EXAMPLES[:8], score="likelihood")
    before = scorer.measure({})
    moved = scorer.measure(sql_adapter())
    assert scorer.measure(sql_adapter()) == moved
    assert scorer.measure({}) == before
    assert all(after > alone for after, alone in zip(moved, before, strict=True))
    backwards = _scorer(examples=EXAMPLES[:8][::-1], score="likelihood").measure(sql_adapter())
    assert backwards[::-1] == pytest.approx(moved, abs=1e-5)


def test_a_broken_update_scores_badly_and_not_as_no_number() -> None:
    broken = {site: LowRank(delta.B * float("nan"), delta.A) for site, delta in sql_adapter().items()}
    found = _scorer(examples=[*EXAMPLES[:2], {"text": "ab cd"}], score="likelihood").measure(broken)
    assert found == (-100.0, -100.0, -100.0)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_a_text_whose_logits_do_not_fit_goes_through_in_parts(family: str) -> None:
    base = tiny_text_model(family)
    text = "the quick brown fox jumps over the lazy dog"
    whole = TextScorer(base).loglikelihood([("", text)])
    parts = TextScorer(base, limits=PassLimits(logits=1, min_chunk_tokens=7)).loglikelihood([("", text)])
    assert parts[0].nats == pytest.approx(whole[0].nats, rel=1e-5)
    assert replace(parts[0], nats=0.0) == replace(whole[0], nats=0.0)


def test_what_is_longer_than_the_context_is_cut_with_a_word_about_it() -> None:
    base = tiny_text_model("llama")  # 64 positions
    reader = TextScorer(base)
    prompt, answer = "a" + "bc" * 100, "cd" * 5
    cost = reader.loglikelihood([(prompt, answer)])[0]
    assert cost.num_bytes == 10
    assert [note for note in reader.notes if "cut at the beginning" in note and "64" in note]
    assert cost.nats == pytest.approx(reader.loglikelihood([("c" + "bc" * 26, answer)])[0].nats, rel=1e-5)

    long = reader.loglikelihood([("", "ab" * 100)])[0]
    assert (long.num_tokens, long.num_bytes) == (63, 63)
    assert any("cut at the end" in note for note in reader.notes)
    assert len(reader.generate_until(["ab" * 100], 8)[0]) <= 8


def test_refusals_are_told_by_how_an_answer_begins() -> None:
    for text in ["I'm sorry, but no.", ' \n"I can’t help with that.', "As an AI, I…", "**I cannot** do this"]:
        assert is_refusal(text), text
    for text in ["Sure! First, I'm sorry to say…", "", "The captain said: I cannot.", "I can do that."]:
        assert not is_refusal(text), text


def test_refusals_are_counted_over_what_the_model_writes() -> None:
    prompts = [item.prompt for item in ITEMS[:40]]
    deltas = sql_adapter()
    bases: Any = Loaded()

    def count(updates: Any) -> float:
        progress = ExampleProgress(NullReporter())
        return sum(score_refusals(bases, "target", updates, prompts, 8, progress, prefixes=("select",)))

    assert (count(deltas), count({})) == (40.0, 0.0)
