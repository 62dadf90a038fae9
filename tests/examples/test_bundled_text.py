"""The generators behind the bundled models."""

from __future__ import annotations

import pytest

from examples.text.corpus import generate_corpus
from examples.text.queries import Example, generate_examples, read_task, write_task


@pytest.mark.parametrize("world", ["harbor", "upriver", "mountain"])
def test_a_world_is_the_same_text_for_the_same_seed_and_keeps_its_held_out_text_apart(world):
    text = generate_corpus(world, seed=1, count=200, held_out=50)
    assert text == generate_corpus(world, seed=1, count=200, held_out=50)
    assert text.train != generate_corpus(world, seed=2, count=200, held_out=50).train
    assert not set(text.train) & set(text.held_out)


def test_no_held_out_statement_is_ever_trained_on():
    train = {item.answer for item in generate_examples("train", 500, seed=1)}
    held_out = {item.answer for item in generate_examples("held-out", 200, seed=1)}
    assert not train & held_out
    assert len(held_out) > 20


def test_no_base_model_reads_a_query():
    for world in ("harbor", "upriver", "mountain"):
        text = generate_corpus(world, seed=1, count=500)
        assert not [document for document in text.train if "arrivals WHERE" in document or "SQL" in document]


def test_a_task_file_reads_back_as_it_was_written(tmp_path):
    items = generate_examples("held-out", 5, seed=3)
    write_task(tmp_path / "task.jsonl", items)
    assert read_task(tmp_path / "task.jsonl") == items


@pytest.mark.parametrize("line", ["not json", "[1]", '{"prompt": "a"}', '{"prompt": "a", "answer": 1}'])
def test_a_bad_line_in_a_task_file_is_named(tmp_path, line):
    path = tmp_path / "task.jsonl"
    write_task(path, [Example("a", "b")])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=r"task\.jsonl, line 2"):
        read_task(path)
