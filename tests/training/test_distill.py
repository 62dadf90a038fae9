"""A fresh adapter of the target learns the task from what the source and its adapter write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.text.queries import generate_examples
from rebase.errors import Cancelled
from rebase.lora.low_rank import LowRank, Role, Site
from rebase.methods.base_params import RefineParams
from rebase.methods.distill.params import DistillParams
from rebase.models.causal_lm import CausalLM, with_deltas
from rebase.models.generation import encode_with_bos
from rebase.models.vocabulary import Vocabulary, find_shared_tokens
from rebase.report.progress import NullReporter
from rebase.schemas.states import Phase
from rebase.training.batches import (
    EncodedSample,
    Losses,
    compute_losses,
    encode_samples,
    project_scores,
    score_threshold,
)
from rebase.training.distillation import DistillResult, compute_gap_metrics, init_factors
from rebase.training.logit_shift import compute_shift_loss, compute_target_distribution, compute_teacher_shift
from rebase.training.losses import SharedTokenIds, select_shared_ids
from rebase.training.samples import Sample
from support.bundled import bundled, sql_adapter, task_loss
from support.distill_helpers import distill, refine

PROMPTS = tuple(item.prompt for item in generate_examples("train", 64, 5))
QUICK = DistillParams(
    prompts=PROMPTS, tokens=400, length=48, steps=6, evaluate_every=2, learning_rate=2e-3, filter="speaks"
)


def common_to(name: str) -> SharedTokenIds:
    """Tokens of harbor-1 that another bundled base has too."""
    words = [
        Vocabulary.from_tokenizer_json(json.loads(bundled(x).text.tokenizer.to_str()))
        for x in ("harbor-1", name)
    ]
    sizes = [bundled(x).text.model.config.vocab_size for x in ("harbor-1", name)]
    return select_shared_ids(find_shared_tokens(*words), *sizes)


SITES = {site: delta.shape for site, delta in sql_adapter().items()}  # harbor-2 has harbor-1's shapes


@pytest.fixture(scope="module")
def source() -> CausalLM:
    return bundled("harbor-1").text


@pytest.fixture(scope="module")
def target() -> CausalLM:
    return bundled("harbor-2").text


def same(a: DistillResult, b: DistillResult) -> bool:
    return (
        a.measurements == b.measurements
        and a.curve == b.curve
        and all(
            torch.equal(x, y)
            for site in a.deltas
            for x, y in zip(
                (a.deltas[site].A, a.deltas[site].B), (b.deltas[site].A, b.deltas[site].B), strict=True
            )
        )
    )


def test_most_of_the_task_comes_over_without_its_text(source: CausalLM, target: CausalLM) -> None:
    """Unlabelled questions in, no answer is ever shown; 6.1 nats alone, 0.08 with a native adapter."""
    params = DistillParams(
        prompts=PROMPTS,
        tokens=3000,
        length=48,
        steps=60,
        evaluate_every=10,
        learning_rate=2e-3,
        filter="speaks",
    )
    alone = task_loss(target)

    found = distill(source, target, sql_adapter(), SITES, params, watch=NullReporter())

    with with_deltas(target, found.deltas):
        carried = task_loss(target)
    assert (alone - carried) / (alone - 0.078) > 0.75
    told = found.measurements
    assert 0.7 < told["distill_recovered"] <= 1.0
    assert told["distill_nats_teacher"] < told["distill_nats_carried"] < told["distill_nats_alone"]
    assert told["distill_learnt_share"] == pytest.approx(0.7, abs=0.05)
    assert {delta.rank for delta in found.deltas.values()} == {8}
    assert found.curve[0]["steps"] == 0
    assert min(point["held_out"] for point in found.curve) < 0.2 * found.curve[0]["held_out"]


def test_bases_of_other_tokenizers_learn_from_the_same_text(source: CausalLM) -> None:
    other = bundled("lantern-1")
    sites = {site: other.weights.shape(site) for site in other.weights.sites}
    assert other.text.encode(PROMPTS[0]).ids != source.encode(PROMPTS[0]).ids

    params = QUICK.model_copy(update={"steps": 20, "learning_rate": 5e-3})
    found = distill(source, other.text, sql_adapter(), sites, params, rank=4, watch=NullReporter())

    assert set(found.deltas) == set(sites)
    assert all(delta.shape == sites[site] and delta.rank == 4 for site, delta in found.deltas.items())
    assert found.measurements["distill_nats_carried"] < 0.7 * found.measurements["distill_nats_alone"]


class Stopping(NullReporter):
    def __init__(self, phase: Phase, after: int) -> None:
        self.phase, self.after = phase, after

    def update(self, phase: Phase, done: int = 0, total: int | None = None, unit: str | None = None) -> None:
        if phase == self.phase and done >= self.after:
            raise Cancelled("enough")


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize(("phase", "after"), [(Phase.COLLECTING, 100), (Phase.TRAINING, 3)])
def test_an_interrupted_job_ends_with_the_same_bytes(
    source: CausalLM, target: CausalLM, tmp_path: Path, phase: Phase, after: int, shift: float
) -> None:
    params, common = QUICK.model_copy(update={"shift": shift}), common_to("harbor-2")
    whole = distill(source, target, sql_adapter(), SITES, params, watch=NullReporter(), common=common)
    with pytest.raises(Cancelled):
        distill(
            source, target, sql_adapter(), SITES, params,
            watch=Stopping(phase, after), checkpoint_dir=tmp_path, checkpoint_s=0.0, common=common,
        )  # fmt: skip

    again = distill(
        source, target, sql_adapter(), SITES, params,
        watch=NullReporter(), checkpoint_dir=tmp_path, common=common,
    )  # fmt: skip

    assert same(again, whole)
    assert ("distill_shift_carried" in whole.measurements) == (shift > 0.0)


@pytest.mark.parametrize("name", ["harbor-2", "lantern-1"])
def test_the_shift_is_learnt_where_both_tokenizers_end_a_token(source: CausalLM, name: str) -> None:
    other = bundled(name)
    sites = {site: other.weights.shape(site) for site in other.weights.sites}
    params = QUICK.model_copy(update={"steps": 12, "learning_rate": 5e-3, "shift": 1.0})

    found = distill(
        source, other.text, sql_adapter(), sites, params, rank=4, watch=NullReporter(), common=common_to(name)
    )

    assert found.measurements["distill_shift_carried"] < 0.8 * found.measurements["distill_shift_alone"]
    assert found.measurements["distill_nats_carried"] < found.measurements["distill_nats_alone"]


def test_what_the_shift_wants_of_the_source_itself_is_what_its_adapter_says(source: CausalLM) -> None:
    """And of any base, when the adapter does nothing, what that base says anyway."""
    common = SharedTokenIds(*2 * [torch.arange(source.model.config.vocab_size)])
    deltas, text = sql_adapter(), PROMPTS[0] + " A ship came in April."
    encoded = encode_with_bos(source, text)
    nothing = {site: delta.scaled(0.0) for site, delta in deltas.items()}
    for update in (deltas, nothing):
        shift = compute_teacher_shift(source, update, encoded, len(PROMPTS[0]), common)
        assert shift is not None
        assert min(shift.ends) >= len(PROMPTS[0])
        wanted = compute_target_distribution(source, encoded.ids, encoded.offsets, shift, common)
        assert wanted is not None
        assert len(wanted.positions) == len(shift.ends)
        with torch.no_grad(), with_deltas(source, update):
            logits = source.model(torch.tensor([encoded.ids])).logits[0]
        assert float(compute_shift_loss(logits, wanted, common)) == pytest.approx(0.0, abs=1e-4)


def test_refining_goes_on_from_what_was_carried(source: CausalLM, target: CausalLM) -> None:
    deltas = sql_adapter()
    params = RefineParams(prompts=PROMPTS, tokens=400, length=48, steps=8, evaluate_every=4)
    with with_deltas(target, deltas):
        copied = task_loss(target)

    found = refine(source, target, deltas, deltas, params, watch=NullReporter())

    with with_deltas(target, found.deltas):
        assert task_loss(target) < copied + 0.01
    assert {delta.rank for delta in found.deltas.values()} == {8}


def test_nothing_has_changed_before_the_first_step(target: CausalLM) -> None:
    given_ = sql_adapter()
    for init in (None, given_):
        begun = init_factors(SITES, 12, init, seed=1)
        for site, delta in begun.items():
            assert delta.rank == 12
            expected = init[site].B @ init[site].A if init else torch.zeros(delta.shape)
            torch.testing.assert_close(delta.B @ delta.A, expected)
            assert bool((delta.A.abs().sum(1) > 0).all())  # every direction can be learnt


def test_a_smaller_rank_begins_with_the_nearest_update() -> None:
    site = Site(0, Role.Q)
    B, A = torch.linalg.qr(torch.randn(6, 3, generator=torch.Generator().manual_seed(0))).Q, torch.eye(3, 5)
    begun = init_factors({site: (6, 5)}, 2, {site: LowRank(B * torch.tensor([3.0, 2.0, 1.0]), A)}, seed=0)[
        site
    ]

    expected = B[:, :2] * torch.tensor([3.0, 2.0]) @ A[:2]
    torch.testing.assert_close(begun.B @ begun.A, expected, atol=1e-5, rtol=0)


def test_only_tokens_that_the_adapter_lifts_are_learnt(target: CausalLM) -> None:
    text = "The ship came in April."
    encoded = target.encode(text)
    lifted = text.index("April")
    scores = [5.0 if start >= lifted - 1 else -1.0 for start, _ in encoded.offsets]
    sample = Sample(text, 4, encoded.offsets, scores, [0.0] * len(scores), ended=True)
    share = sum(score > 0 for score in scores) / sum(end > 4 for _, end in encoded.offsets)

    row = encode_samples(target, [sample], DistillParams(filter="speaks", keep=share))[0]
    whole = encode_samples(target, [sample], DistillParams(filter="none"))[0]

    assert row.ids == [0, *encoded.ids, 0]
    learnt = [span for span, kept in zip(row.spans[1:], row.loss_mask, strict=True) if kept]
    assert learnt == [*[span for span in encoded.offsets if span[0] >= lifted - 1], (len(text), len(text))]
    assert whole.loss_mask == [*[end > 4 for _, end in encoded.offsets], True]
    assert whole.generated_mask == row.generated_mask == [*[end > 4 for _, end in encoded.offsets], False]
    assert row.num_bytes == len(text) - 4


def test_nats_per_byte_are_those_of_the_model(target: CausalLM) -> None:
    text = "Question: Which ships came in May?"
    encoded = target.encode(text)
    sample = Sample(text, 0, encoded.offsets, [0.0] * len(encoded.ids), [0.0] * len(encoded.ids), ended=False)
    rows = encode_samples(target, [sample, sample], DistillParams(filter="none"))
    ids = torch.tensor([[0, *encoded.ids]])
    logs = target.model(input_ids=ids).logits[0, :-1].detach().log_softmax(-1)
    nats = -float(logs.gather(1, ids[0, 1:, None]).sum())

    found = compute_losses(target, rows)

    assert found.per_byte == pytest.approx(nats / len(text), rel=1e-4)
    assert found.per_token == pytest.approx(nats / len(encoded.ids), rel=1e-4)


def test_the_teacher_is_held_to_what_the_target_could_read() -> None:
    """The second half of a sample lay beyond the target's context, and cost the teacher more."""
    spans = [(at, at + 2) for at in range(0, 40, 2)]
    sample = Sample("ab" * 20, 0, spans, [-0.5] * 10 + [-9.0] * 10, [-1.0] * 10 + [-9.0] * 10, ended=False)
    cut = EncodedSample(
        sample, list(range(11)), [(0, 0), *spans[:10]], [True] * 10, [True] * 10, num_bytes=20
    )
    found = compute_gap_metrics([cut], Losses(2.0, 4.0), Losses(1.0, 2.0))
    assert (found["nats_teacher"], found["nats_source"]) == (0.25, 0.5)
    assert found["recovered"] == pytest.approx(1.0 / 1.75)


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=12), st.lists(st.integers(1, 5), min_size=1, max_size=12)
)
def test_scores_keep_their_sum_between_tokenisations(ours: list[int], theirs: list[int]) -> None:
    def spans(widths: list[int], length: int) -> list[tuple[int, int]]:
        ends = [sum(widths[: at + 1]) for at in range(len(widths))]
        ends = [min(end, length) for end in ends]
        ends[-1] = length
        return list(zip([0, *ends[:-1]], ends, strict=True))

    length = max(sum(ours), sum(theirs))
    scores = [float(at + 1) for at in range(len(ours))]
    own = spans(ours, length)
    scores = [score if end > start else 0.0 for score, (start, end) in zip(scores, own, strict=True)]

    assert sum(project_scores(own, scores, spans(theirs, length))) == pytest.approx(sum(scores))
    assert project_scores(own, scores, own) == pytest.approx(scores)


def test_scores_follow_the_characters() -> None:
    assert project_scores([(0, 4), (4, 6)], [4.0, 1.0], [(0, 0), (0, 3), (3, 5), (5, 6)]) == [
        0.0,
        3.0,
        1.5,
        0.5,
    ]
    assert project_scores([(0, 1), (0, 1)], [2.0, 3.0], [(0, 1)]) == [5.0]  # the bytes of one character


def test_the_threshold_keeps_the_share_that_is_asked_for() -> None:
    scores = [0.3, -1.0, 2.0, 0.9, 0.0]

    assert [score for score in scores if score >= score_threshold(scores, 0.4)] == [2.0, 0.9]
    assert score_threshold(scores, 1.0) == float("-inf")
    assert score_threshold([], 0.5) == float("-inf")


def test_the_parameters_have_a_short_form() -> None:
    params = DistillParams()

    assert (params.tokens, params.init, params.filter) == (20_000, "zero", "none")
    assert RefineParams().steps < params.steps
