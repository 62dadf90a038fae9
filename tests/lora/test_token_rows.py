"""Trained token rows: which rows changed, where they go, and how little is read for it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rebase.errors import MalformedAdapter
from rebase.lora.config import AdapterConfig
from rebase.lora.reader import read_adapter
from rebase.lora.token_rows import (
    ChangedRows,
    EmbeddingTable,
    build_transferred_rows,
    collect_changed_rows,
    find_table_name,
    get_embedding_role,
    iter_row_deltas,
)
from rebase.models.families import FAMILIES
from rebase.models.vocabulary import Vocabulary, map_token_rows
from support.tiny_models import FolderReader, tiny_model, weights_of

NAME = "model.embed_tokens.weight"


class Counting(FolderReader):
    """Counts the rows that are read."""

    def __init__(self, tensors):
        super().__init__(tensors)
        self.rows = []

    def read_rows(self, name, start, stop):
        self.rows.append(stop - start)
        return super().read_rows(name, start, stop)


def _table(rows, *, seed=0, dtype=torch.float32, width=32):
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return EmbeddingTable(Counting({NAME: values.to(dtype)}), NAME)


def _adapter(base, extra, **config):
    """An adapter of a tiny Llama, with `extra` tensors of trained rows beside one LoRA pair."""
    prefix = "base_model.model.model."
    q = f"{prefix}layers.0.self_attn.q_proj"
    tensors = {f"{q}.lora_A.weight": torch.ones(1, 32), f"{q}.lora_B.weight": torch.ones(32, 1)}
    tensors |= {f"{prefix}{name}": tensor for name, tensor in extra.items()}
    raw = {"peft_type": "LORA", "r": 1, **config}
    return read_adapter(AdapterConfig.parse(raw), FolderReader(tensors), base)


BASE = weights_of(tiny_model("llama"))


def _whole(trained):
    adapter = _adapter(BASE, {"embed_tokens.weight": trained}, modules_to_save=["embed_tokens"])
    return adapter, adapter.tables[0]


def _all(blocks):
    found = list(blocks)
    if not found:
        return torch.empty(0, dtype=torch.long), torch.empty(0, 32)
    return torch.cat([ids for ids, _ in found]), torch.cat([D for _, D in found])


@settings(max_examples=30, deadline=None)
@given(changed=st.sets(st.integers(0, 299), max_size=40), block=st.sampled_from([32, 320, 2**22]))
def test_the_changed_rows_of_a_whole_table_are_found_block_by_block(changed, block):
    base = _table(300)
    trained, ids = base.read(0, 300).clone(), sorted(changed)
    trained[ids] += 0.5
    found, D = _all(iter_row_deltas(*_whole(trained), base, block_size=block))
    assert found.tolist() == ids
    torch.testing.assert_close(D, trained[ids] - base.read(0, 300)[ids])


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_rounding_by_the_adapters_dtype_is_no_change(stored):
    base = _table(100)
    trained = base.read(0, 100).to(stored)
    trained[7] += 1
    found, _ = _all(iter_row_deltas(*_whole(trained), base))
    assert found.tolist() == [7]


def test_rows_that_hold_nan_are_refused():
    base = _table(100)
    trained = base.read(0, 100).clone()
    trained[99, 3] = torch.nan
    with pytest.raises(MalformedAdapter, match="embed_tokens"):
        _all(iter_row_deltas(*_whole(trained), base))


def test_single_tokens_come_in_ascending_order_and_only_their_rows_are_read():
    base = _table(100_000, width=32)
    ids = [99_000, 3, 50_000]
    rows = {"embed_tokens.token_adapter.trainable_tokens_delta": torch.zeros(3, 32)}
    adapter = _adapter(BASE, rows, trainable_token_indices=ids)
    found, D = _all(iter_row_deltas(adapter, adapter.tables[0], base))
    assert found.tolist() == [3, 50_000, 99_000]
    assert torch.equal(D, -base.gather(torch.tensor([3, 50_000, 99_000])))
    assert base._reader.rows[:3] == [1, 1, 1]


@settings(max_examples=40, deadline=None)
@given(ids=st.sets(st.integers(0, 9_999), max_size=60))
def test_scattered_rows_are_the_rows_and_reading_stays_bounded(ids):
    table = _table(10_000, width=4)
    order = torch.tensor(sorted(ids), dtype=torch.long)
    found = table.gather(order)
    assert torch.equal(found, table._reader.tensors[NAME][order])
    assert sum(table._reader.rows) <= 65 * len(ids)
    assert max(table._reader.rows, default=0) <= 4096


def test_rows_without_counterpart_are_named_and_the_others_sorted_by_target():
    target_of = torch.tensor([4, -1, 2, 9])
    found = collect_changed_rows(
        [(torch.tensor([0, 1]), torch.zeros(2, 1)), (torch.tensor([2]), torch.zeros(1, 1))], target_of
    )
    assert found.target_ids.tolist() == [2, 4]
    assert found.unmatched_ids == [1]


@pytest.mark.parametrize(("changed", "rows", "form"), [(5, 100, "rows"), (6, 100, "whole"), (1, 3, "rows")])
def test_one_row_in_twenty_is_the_most_that_is_stored_singly(changed, rows, form):
    assert ChangedRows(torch.arange(changed), []).choose_storage(rows) == form


@settings(max_examples=30, deadline=None)
@given(
    order=st.permutations(range(40)),
    changed=st.sets(st.integers(0, 39), min_size=1, max_size=40),
    whole=st.booleans(),
    dtypes=st.tuples(
        st.sampled_from([torch.float32, torch.bfloat16]), st.sampled_from(["float32", "bfloat16"])
    ),
)
def test_a_new_row_is_its_own_row_plus_the_change_of_its_token(order, changed, whole, dtypes):
    stored, written = dtypes
    target = _table(40, seed=3, dtype=stored)
    target_of, ids = torch.tensor(order), torch.tensor(sorted(changed))
    D = torch.randn(len(ids), 32, generator=torch.Generator().manual_seed(4))
    half = len(ids) // 2
    blocks = [(ids[:half], D[:half]), (ids[half:], D[half:])]
    asked = None if whole else collect_changed_rows(blocks, target_of).target_ids
    out, error = build_transferred_rows(blocks, target_of, target, asked, written)

    expected = target.read(0, 40).float()
    expected[target_of[ids]] += D
    kept = expected if whole else expected[asked]
    assert torch.equal(out, kept.to(out.dtype))
    assert error < (1e-12 if written == "float32" else 1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tables_of_every_family_are_found_by_name(family):
    model = tiny_model(family)
    weights = weights_of(model)
    reader = FolderReader(model.state_dict())
    arch = weights.architecture
    for side, module in (("input", model.get_input_embeddings()), ("output", model.get_output_embeddings())):
        name = find_table_name(arch, reader.infos(), side)
        assert torch.equal(reader.tensors[name], module.weight)
        assert get_embedding_role(arch, name.removesuffix(".weight")) == side
    assert get_embedding_role(arch, "vision_tower.embed_tokens") is None
    assert get_embedding_role(arch, f"{arch.root}norm") is None


def _vocabulary(tokens, added=()):
    own = {piece: id_ for piece, id_ in tokens.items() if piece not in dict(added)}
    return Vocabulary({p.encode(): i for p, i in own.items()}, {**own, **dict(added)}, dict(added))


def test_equal_vocabularies_are_equal_row_by_row_with_the_unnamed_rows_behind_them():
    one = _vocabulary({"a": 0, "b": 1}, {"<x>": 2})
    assert map_token_rows(one, one, 6, 5).tolist() == [0, 1, 2, 3, 4, -1]


def test_other_vocabularies_pair_by_bytes_and_added_tokens_by_spelling():
    one = _vocabulary({"a": 0, "b": 1, "c": 2}, {"<x>": 3, "<y>": 4})
    two = _vocabulary({"b": 0, "c": 1, "d": 2}, {"<x>": 7})
    assert map_token_rows(one, two, 6, 8).tolist() == [-1, 0, 1, 7, -1, -1]


def test_a_token_beyond_either_table_has_no_counterpart():
    one = _vocabulary({"a": 0, "b": 1, "c": 2})
    two = _vocabulary({"c": 0, "b": 5, "a": 1})
    assert map_token_rows(one, two, 2, 4).tolist() == [1, -1]
