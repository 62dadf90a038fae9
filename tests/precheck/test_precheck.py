"""The pre-check's verdicts on pairs whose relation is known."""

from __future__ import annotations

import pytest
import torch

from rebase.evidence.embeddings import SharedTokenRows
from rebase.lora.config import AdapterConfig
from rebase.lora.linalg import factorize
from rebase.lora.low_rank import Role
from rebase.lora.reader import read_adapter
from rebase.methods.activation.params import ActivationParams
from rebase.methods.auto.params import AutoParams
from rebase.methods.auto.rules import choose
from rebase.methods.base import Evidence
from rebase.methods.base_params import DareParams
from rebase.methods.copy.params import CopyParams
from rebase.methods.cross_lora.params import CrossLoraParams
from rebase.methods.distill.params import DistillParams
from rebase.methods.findings import Finding
from rebase.methods.params import parse_params
from rebase.methods.site_pairing import pair_sites
from rebase.models.vocabulary import SharedTokens
from rebase.models.weights import ModelWeights
from rebase.precheck.measurements import select_probe_pairs
from rebase.precheck.precheck import PROBE_NEEDS, PrecheckResult, decide_verdict, precheck
from support.tiny_models import FolderReader, open_adapter_folder, save_adapter, tiny_model, weights_of

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VOCABULARY = 400


def _base(model_type="llama", **changes):
    return weights_of(tiny_model(model_type, **({"vocab_size": VOCABULARY} | changes)))


def _perturbed(base: ModelWeights, share: float) -> ModelWeights:
    """The same base with every matrix moved by `share` of its norm in a random direction."""
    generator = torch.Generator().manual_seed(5)
    moved = {}
    for name, tensor in sorted(base._reader.tensors.items()):
        noise = torch.randn(tensor.shape, generator=generator)
        moved[name] = tensor + share * tensor.norm() / noise.norm() * noise if tensor.ndim == 2 else tensor
    return ModelWeights(base.config, FolderReader(moved))


def _tokens(count=VOCABULARY - 3, overlap=1.0):
    ids = torch.arange(3, 3 + count)
    return SharedTokens(ids, ids, overlap, overlap, overlap, overlap == 1.0)


class _Probe:
    """Evidence of one site pair straight from two models."""

    def __init__(self, source, target, paired, pair):
        self.models = {"source": (source, pair.source), "target": (target, pair.target)}
        self.embeddings = paired

    def weight(self, side):
        model, site = self.models[side]
        return model.weight(site)

    def factors(self, side, rank):
        return factorize(self.weight(side), rank)

    def embedding_rows(self, side, port):
        return self.embeddings.rows(side, self.models[side][1], port)

    def cached_by_site(self, entry_name, compute):
        return compute()


def _adapter(tmp_path, source, **lora):
    model = tiny_model("llama", vocab_size=VOCABULARY)
    lora = {"r": 4, "lora_alpha": 4, "target_modules": ALL} | lora
    config, reader = open_adapter_folder(save_adapter(tmp_path, model, **lora))
    return read_adapter(AdapterConfig.parse(config), reader, source)


def _check(tmp_path, target, params, tokens=None, source=None, **lora) -> tuple[PrecheckResult, list[str]]:
    source = source or _base()
    adapter = _adapter(tmp_path, source, **lora)
    pairing = pair_sites(source, target, adapter.sites, layer_scale=True)
    paired = SharedTokenRows(source, target, tokens.source_ids, tokens.target_ids) if tokens else None
    probed = []

    def probes(pair):
        probed.append(pair)
        return _Probe(source, target, paired, pair)

    result = precheck(source, target, adapter, pairing, tokens, params, probes=probes)
    return result, [reason.code for reason in result.findings]


def _weights(result, code):
    return [reason.weight for reason in result.findings if reason.code == code]


@pytest.mark.parametrize("params", [CopyParams(), AutoParams()])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.14])
def test_close_relatives_are_compatible_with_copying_and_auto_says_why_it_copies(tmp_path, params, share):
    result, codes = _check(tmp_path, _perturbed(_base(), share), params, _tokens())
    assert result.verdict == "compatible"
    assert result.method == "copy"
    assert result.measurements["relative_distance"] == pytest.approx(share, abs=0.002)
    assert "close_relatives" in codes
    assert ("auto_copy" in codes) == (params.name == "auto")


def test_distant_relatives_are_uncertain_for_copying(tmp_path):
    result, codes = _check(tmp_path, _perturbed(_base(), 0.4), AutoParams(), _tokens())
    assert (result.verdict, result.method) == ("uncertain", "copy")
    assert "distant_bases" in codes


def test_equal_shapes_with_unrelated_weights_are_incompatible_for_copying(tmp_path):
    result, codes = _check(tmp_path, _base(seed=77), CopyParams(), _tokens())
    assert result.verdict == "incompatible"
    assert result.measurements["relative_distance"] == pytest.approx(2**0.5, abs=0.1)
    assert "unrelated_bases" in codes


@pytest.mark.parametrize("name", ["linear", "prolora", "difference", "weight_average", "ties"])
def test_no_weight_space_method_is_allowed_between_unrelated_weights(tmp_path, name):
    result, codes = _check(tmp_path, _base(seed=9), parse_params(name), _tokens())
    assert result.verdict == "incompatible"
    assert "unrelated_bases" in codes


@pytest.mark.parametrize("name", ["difference", "weight_average", "ties"])
def test_a_baseline_is_never_better_than_uncertain_and_says_what_is_left_of_the_adapter(tmp_path, name):
    result, codes = _check(
        tmp_path, _perturbed(_base(), 0.3), parse_params({"name": name, "rank": 1}), _tokens()
    )
    assert result.verdict != "compatible"
    assert {"baseline", "little_skill"} <= set(codes)
    assert result.measurements["skill_kept"] < 0.5


def test_prolora_says_when_it_drops_most_of_the_update(tmp_path):
    close = _perturbed(_base(), 0.01)
    whole, codes = _check(tmp_path / "a", close, parse_params({"name": "prolora", "energy": 1.0}), _tokens())
    assert whole.verdict == "compatible"
    assert "little_energy" not in codes
    half, codes = _check(tmp_path / "b", close, parse_params({"name": "prolora", "energy": 0.9}), _tokens())
    assert half.verdict == "uncertain"
    assert "little_energy" in codes


def test_thinning_out_is_a_doubt_that_auto_hands_on(tmp_path):
    result, codes = _check(tmp_path, _perturbed(_base(), 0.01), AutoParams(dare=DareParams()), _tokens())
    assert result.method == "copy"
    assert result.params.dare == DareParams()
    assert result.verdict == "uncertain"
    assert "dare" in codes


def test_unrelated_bases_of_other_shape_are_incompatible_as_their_anchors_carry_nothing(tmp_path):
    target = _base("qwen2", seed=7, hidden_size=48, vocab_size=VOCABULARY)
    result, _ = _check(tmp_path, target, AutoParams(), _tokens())
    assert (result.verdict, result.method) == ("incompatible", "cross_lora")
    assert result.params.alignment == "anchored"
    assert _weights(result, "anchors_uninformative") == ["blocking"]
    assert "retained about 1% of the gain from training" in " ".join(
        reason.message for reason in result.findings
    )


def _widened(base: ModelWeights) -> ModelWeights:
    """The same function in a residual stream of other coordinates: rotated, norms folded away first."""
    tensors = {name: tensor.clone() for name, tensor in base._reader.tensors.items()}
    width = base.architecture.hidden
    Q = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(8))).Q
    for name, tensor in tensors.items():
        if name.endswith("norm.weight"):
            tensor.fill_(1.0)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] = Q @ tensor
        elif tensor.ndim == 2:
            tensors[name] = tensor @ Q.T
    return ModelWeights(base.config, FolderReader(tensors))


def test_a_rotated_copy_is_uncertain_but_not_refused_as_its_anchors_carry_all(tmp_path):
    plain = _base()
    for name, tensor in plain._reader.tensors.items():
        if name.endswith("norm.weight"):
            tensor.fill_(1.0)
    result, codes = _check(tmp_path, _widened(plain), AutoParams(), _tokens(), source=plain)
    assert (result.verdict, result.method) == ("uncertain", "cross_lora")
    assert "across_families" in codes
    assert "anchors_uninformative" not in codes
    assert result.measurements["anchor_residual_in"] < 0.01 * result.measurements["anchor_null_in"]


def test_no_shared_vocabulary_is_incompatible_and_costs_no_factorization(tmp_path):
    target = _base("qwen2", hidden_size=48)
    result, codes = _check(tmp_path, target, AutoParams(), None)
    assert result.verdict == "incompatible"
    assert "no_anchors" in codes
    assert "energy_source" not in result.measurements


def test_a_method_that_refuses_the_pair_gives_its_own_sentence_before_any_weight_is_read(tmp_path):
    source, target = _base(), _base("qwen2", hidden_size=48)
    result, codes = _check(tmp_path, target, CopyParams(), _tokens(), source=source)
    assert result.verdict == "incompatible"
    assert "refused_by_method" in codes
    assert "layers.0.q_proj" not in codes
    assert source._reader.reads == []
    assert target._reader.reads == []


def test_padding_across_shapes_is_called_a_control(tmp_path):
    result, codes = _check(tmp_path, _base("qwen2", hidden_size=48), CopyParams(pad=True), _tokens())
    assert result.verdict == "uncertain"
    assert "padded" in codes


def test_a_target_without_most_modules_is_incompatible(tmp_path):
    target = _base("gpt2", n_embd=32)
    result, _ = _check(
        tmp_path, target, CrossLoraParams(), _tokens(), target_modules=["gate_proj", "up_proj", "q_proj"]
    )
    assert result.measurements["sites_covered"] == pytest.approx(2 / 3)
    assert _weights(result, "dropped_sites") == ["doubt"]
    rest, _ = _check(
        tmp_path / "b", target, CrossLoraParams(), _tokens(), target_modules="(.*gate_proj|.*0.*q_proj)"
    )
    assert _weights(rest, "few_sites") == ["blocking"]
    assert rest.verdict == "incompatible"


@pytest.mark.parametrize("params", [DistillParams(), ActivationParams(solve="step")])
def test_what_is_trained_on_the_target_needs_no_place_for_each_module(tmp_path, params):
    target = _base("gpt2", n_embd=32)
    found, _ = _check(tmp_path, target, params, _tokens(), target_modules="(.*gate_proj|.*0.*q_proj)")
    assert found.measurements["sites_covered"] < 0.5
    assert _weights(found, "dropped_sites") == ["info"]
    assert found.verdict != "incompatible"


def test_another_tokenizer_and_a_huge_update_are_doubts(tmp_path):
    target = _perturbed(_base(), 0.01)
    result, codes = _check(tmp_path, target, CopyParams(), _tokens(200, overlap=0.5), lora_alpha=400)
    assert result.verdict == "uncertain"
    assert {"other_tokenizer", "large_update"} <= set(codes)
    assert result.measurements["update_ratio"] > 0.5


def test_index_alignment_is_never_better_than_uncertain_and_never_chosen(tmp_path):
    result, codes = _check(tmp_path, _perturbed(_base(), 0.01), CrossLoraParams(alignment="index"), _tokens())
    assert result.verdict == "uncertain"
    assert "index_alignment" in codes
    for measured in (
        {"shapes_equal": 0.5},
        {"shapes_equal": 1.0, "relative_distance": 1.4},
        {"shapes_equal": 1.0},
    ):
        chosen, why = choose(AutoParams(layer_scale=False), measured)
        assert isinstance(chosen, CrossLoraParams)
        assert chosen.alignment == "anchored"
        assert chosen.layer_scale is False
        assert [reason.code for reason in why] == ["auto_cross_lora", "auto_would_train"]


def test_a_subspace_that_holds_almost_nothing_of_the_update_is_refused(tmp_path):
    params = CrossLoraParams(rank=1, alignment="projection")
    result, _ = _check(tmp_path, _perturbed(_base(), 0.01), params, _tokens())
    assert _weights(result, "little_energy") == ["blocking"]


def test_the_distance_as_printed_and_the_relative_one_are_both_reported(tmp_path):
    source, target = _base(), _perturbed(_base(), 0.1)
    result, _ = _check(tmp_path, target, CopyParams(), _tokens(), source=source)
    pairs = [(source.weight(site), target.weight(site)) for site in source.sites]
    paper = [float((a - b).norm()) / a.numel() for a, b in pairs]
    relative = [float((a - b).norm() / a.norm()) for a, b in pairs]
    assert result.measurements["distance_paper"] == pytest.approx(sum(paper) / len(paper), rel=1e-5)
    assert result.measurements["relative_distance"] == pytest.approx(sum(relative) / len(relative), rel=1e-5)
    assert result.measurements["relative_distance_max"] == pytest.approx(max(relative), rel=1e-5)


def test_probes_are_the_first_middle_and_last_layer(tmp_path):
    deep = _base(num_hidden_layers=9)
    adapter = _adapter(tmp_path, _base())
    pairing = pair_sites(_base(), deep, adapter.sites, layer_scale=True)
    assert sorted({pair.target.layer for pair in select_probe_pairs(pairing.pairs)}) == [0, 4, 8]
    assert {pair.target.role for pair in select_probe_pairs(pairing.pairs)} == set(Role)


def test_everything_a_probe_may_be_asked_for_is_declared():
    assert set(Evidence) - {Evidence.MAPS, Evidence.TRAINED, Evidence.VALIDATION} == PROBE_NEEDS


def test_the_gravest_reason_decides():
    info, doubt, block = (Finding("x", "y", weight) for weight in ("info", "doubt", "blocking"))
    assert decide_verdict([]) == decide_verdict([info]) == "compatible"
    assert decide_verdict([info, doubt]) == "uncertain"
    assert decide_verdict([doubt, block, info]) == "incompatible"


def test_the_same_pair_gets_the_same_result_twice(tmp_path):
    target = _base("qwen2", seed=7, hidden_size=48)
    one, _ = _check(tmp_path / "a", target, AutoParams(), _tokens())
    two, _ = _check(tmp_path / "b", target, AutoParams(), _tokens())
    assert one == two
