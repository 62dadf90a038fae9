"""What a further adapter between the same two bases costs: what depends on the bases alone is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rebase.cache.factor_cache import FactorCache
from rebase.cache.keys import PairKey
from rebase.evidence.embeddings import SharedTokenRows
from rebase.evidence.site_evidence import EvidenceProvider
from rebase.hub.base import PinnedRepo
from rebase.lora.config import AdapterConfig
from rebase.lora.low_rank import Side
from rebase.lora.reader import read_adapter
from rebase.lora.source_adapter import SourceAdapter
from rebase.methods.base import Evidence, SiteResult
from rebase.methods.cross_lora.method import CrossLora
from rebase.methods.cross_lora.params import CrossLoraParams
from rebase.methods.site_pairing import Pairing, pair_sites
from rebase.models.base_pair import BaseModelRef
from rebase.models.vocabulary import SharedTokens
from rebase.models.weights import ModelWeights
from rebase.precheck.measurements import select_probe_pairs
from rebase.precheck.precheck import PROBE_NEEDS, precheck
from support.tiny_models import FolderReader, open_adapter_folder, save_adapter, tiny_model

VOCABULARY, LAYERS, RANK = 200, 5, 6
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NEEDS = CrossLora().needs(CrossLoraParams())
TOKENS = torch.arange(3, VOCABULARY)


@dataclass
class Pair:
    """Two deep tiny bases of unlike width, as one job opens them; `readers` count what is read of them."""

    cache: FactorCache
    tokens: Tensor = field(default_factory=lambda: TOKENS)
    source_sha: str = "a" * 40
    inner_rows: int = 1024

    def __post_init__(self) -> None:
        source = tiny_model("llama", vocab_size=VOCABULARY, num_hidden_layers=LAYERS)
        target = tiny_model("qwen2", vocab_size=VOCABULARY, num_hidden_layers=LAYERS, hidden_size=48, seed=7)
        self.readers: dict[Side, FolderReader] = {}
        self.weights: dict[Side, ModelWeights] = {}
        bases: tuple[tuple[Side, torch.nn.Module, dict[str, object]], ...] = (
            ("source", source, source.config.to_dict()),
            ("target", target, target.config.to_dict()),
        )
        for side, model, config in bases:
            self.readers[side] = FolderReader({n: t.detach() for n, t in model.state_dict().items()})
            self.weights[side] = ModelWeights(config, self.readers[side])
        self.evidence = EvidenceProvider(
            source=BaseModelRef(PinnedRepo("acme/old", self.source_sha, {}), self.weights["source"]),
            target=BaseModelRef(PinnedRepo("acme/new", "b" * 40, {}), self.weights["target"]),
            cache=self.cache,
            device=torch.device("cpu"),
            embeddings=SharedTokenRows(
                self.weights["source"], self.weights["target"], self.tokens, self.tokens, self.inner_rows
            ),
        )

    @property
    def reads(self) -> set[str]:
        """Tensors of either base of which anything was read."""
        return {name for reader in self.readers.values() for name in reader.reads}

    def pairing(self, adapter: SourceAdapter) -> Pairing:
        """Every site of the adapter in its place."""
        return pair_sites(self.weights["source"], self.weights["target"], adapter.sites, layer_scale=True)

    def carry(self, adapter: SourceAdapter, rank: int = RANK) -> list[SiteResult]:
        """Every site through Cross-LoRA."""
        params = CrossLoraParams(rank=rank)
        return [
            CrossLora().transfer_site(
                params, None, pair, adapter.delta(pair.source), self.evidence.for_site(pair, NEEDS)
            )
            for pair in self.pairing(adapter).pairs
        ]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[SourceAdapter, SourceAdapter]:
    """Two adapters of the source."""
    model = tiny_model("llama", vocab_size=VOCABULARY, num_hidden_layers=LAYERS)
    base = ModelWeights(model.config.to_dict(), FolderReader(model.state_dict()))
    made = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp("adapter")
        save_adapter(
            folder,
            tiny_model("llama", vocab_size=VOCABULARY, num_hidden_layers=LAYERS),
            seed=seed,
            r=4,
            target_modules=MODULES,
        )
        config, reader = open_adapter_folder(folder)
        made.append(read_adapter(AdapterConfig.parse(config), reader, base))
    return made[0], made[1]


@pytest.fixture
def cache(tmp_path: Path) -> FactorCache:
    return FactorCache(tmp_path, 2**30)


def same(a: list[SiteResult], b: list[SiteResult]) -> bool:
    """Equal to the last bit, measurements and flags included."""
    return len(a) == len(b) and all(
        torch.equal(x.delta.B, y.delta.B)
        and torch.equal(x.delta.A, y.delta.A)
        and (x.measurements, x.flags) == (y.measurements, y.flags)
        for x, y in zip(a, b, strict=True)
    )


def test_a_second_adapter_computes_nothing_and_reads_no_base_weight(
    cache: FactorCache, adapters: tuple[SourceAdapter, SourceAdapter]
) -> None:
    first, second = adapters
    Pair(cache).carry(first)
    sites = len(MODULES) * LAYERS
    assert cache.stats.computed == 3 * sites, "two factorizations and one alignment per site"
    later = Pair(cache)
    later.carry(second)
    assert cache.stats.computed == 3 * sites
    assert later.reads == set()


def test_cold_and_warm_give_the_same_bytes_whoever_warmed_the_cache(
    tmp_path: Path, adapters: tuple[SourceAdapter, SourceAdapter]
) -> None:
    first, second = adapters
    cold = Pair(FactorCache(tmp_path / "one", 2**30)).carry(second)
    uncached = Pair(FactorCache(tmp_path / "none", 0)).carry(second)
    Pair(FactorCache(tmp_path / "two", 2**30)).carry(first)
    warm = Pair(FactorCache(tmp_path / "two", 2**30)).carry(second)
    assert same(cold, warm)
    assert same(cold, uncached)


def pair_entries(cache: FactorCache) -> int:
    return sum(isinstance(entry.key, PairKey) for entry in cache.list_entries())


@pytest.mark.parametrize(
    ("another", "rank"),
    [
        (lambda cache: Pair(cache, tokens=TOKENS[1:]), RANK),
        (lambda cache: Pair(cache, tokens=TOKENS.flip(0)), RANK),
        (lambda cache: Pair(cache, inner_rows=64), RANK),
        (lambda cache: Pair(cache, source_sha="c" * 40), RANK),
        (Pair, RANK - 1),
    ],
    ids=["fewer tokens", "tokens in another order", "fewer inner rows", "another commit", "another rank"],
)
def test_alignments_of_anything_else_are_others(
    cache: FactorCache,
    adapters: tuple[SourceAdapter, SourceAdapter],
    another: Callable[[FactorCache], Pair],
    rank: int,
) -> None:
    adapter, _ = adapters
    Pair(cache).carry(adapter)
    known = pair_entries(cache)
    another(cache).carry(adapter, rank)
    assert pair_entries(cache) == 2 * known == 2 * len(MODULES) * LAYERS


def test_an_alignment_is_not_used_with_factors_other_than_those_it_was_fitted_to(
    cache: FactorCache, adapters: tuple[SourceAdapter, SourceAdapter]
) -> None:
    """As when factors were evicted and another device computes them again: one sign differs."""
    adapter, _ = adapters
    job = Pair(cache)
    pair = job.pairing(adapter).pairs[0]
    evidence = job.evidence.for_site(pair, NEEDS)
    delta = adapter.delta(pair.source)
    first = CrossLora().transfer_site(CrossLoraParams(rank=RANK), None, pair, delta, evidence)

    class Elsewhere:
        """The same evidence, with the first singular pair of the source turned round."""

        weight, embedding_rows, cached_by_site = (
            evidence.weight,
            evidence.embedding_rows,
            evidence.cached_by_site,
        )

        def factors(self, side: Side, rank: int):  # type: ignore[no-untyped-def]
            found = evidence.factors(side, rank)
            if side == "source":
                found.U[:, 0].neg_()
                found.V[:, 0].neg_()
            return found

    known = pair_entries(cache)
    second = CrossLora().transfer_site(CrossLoraParams(rank=RANK), None, pair, delta, Elsewhere())
    assert pair_entries(cache) == known + 1
    torch.testing.assert_close(second.delta.B @ second.delta.A, first.delta.B @ first.delta.A)


def test_a_damaged_alignment_is_fitted_again(
    tmp_path: Path, cache: FactorCache, adapters: tuple[SourceAdapter, SourceAdapter]
) -> None:
    first, second = adapters
    Pair(cache).carry(first)
    wanted = Pair(cache).carry(second)
    computed = cache.stats.computed
    damaged = 0
    for path in sorted(tmp_path.glob("entries/*/*/*.safetensors")):
        data = path.read_bytes()
        if b"rotation_in" in data and damaged < 3:
            path.write_bytes([data[:-1], data[:-1] + bytes([data[-1] ^ 1]), b""][damaged])
            damaged += 1
    assert same(Pair(cache).carry(second), wanted)
    assert cache.stats.computed == computed + 3
    assert same(Pair(cache).carry(second), wanted)
    assert cache.stats.computed == computed + 3


def test_a_warm_pre_check_reads_the_weights_of_its_probes_and_computes_nothing(
    cache: FactorCache, adapters: tuple[SourceAdapter, SourceAdapter]
) -> None:
    first, second = adapters
    Pair(cache).carry(first)
    computed, later = cache.stats.computed, Pair(cache)
    pairing = later.pairing(second)
    result = precheck(
        later.weights["source"],
        later.weights["target"],
        second,
        pairing,
        SharedTokens(TOKENS, TOKENS, 1.0, 1.0, 1.0, True),
        CrossLoraParams(rank=RANK),
        probes=lambda pair: later.evidence.for_site(pair, PROBE_NEEDS),
    )
    assert "anchor_residual_in" in result.measurements
    assert cache.stats.computed == computed
    probes = select_probe_pairs(pairing.pairs)
    assert later.reads <= {
        name for p in probes for name in later.weights["source"].list_tensor_names(p.source)
    }
    assert {p.target.layer for p in probes} != set(range(LAYERS))


def test_kept_tensors_must_be_declared(
    cache: FactorCache, adapters: tuple[SourceAdapter, SourceAdapter]
) -> None:
    job = Pair(cache)
    pair = job.pairing(adapters[0]).pairs[0]
    evidence = job.evidence.for_site(pair, frozenset({Evidence.FACTORS}))
    with pytest.raises(LookupError, match="embeddings"):
        evidence.cached_by_site("word", lambda: {"x": torch.ones(1)})
