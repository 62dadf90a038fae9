"""Which repos a subscription means: patterns, and the rule for successors."""

from __future__ import annotations

import string
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.schemas.model_names import (
    ModelVersion,
    check_pattern,
    is_successor,
    matches_pattern,
    parse_model_version,
)

_CHARS = string.ascii_letters + string.digits + "-_."
names = st.text(_CHARS, min_size=1, max_size=20)
patterns = st.text(_CHARS + "*?", min_size=1, max_size=20)
families = st.from_regex(r"[A-Za-z]{2,8}(-[A-Za-z]{2,6})?", fullmatch=True)
versions = st.lists(st.integers(0, 99), min_size=1, max_size=3)


@given(patterns, names)
def test_a_pattern_matches_what_the_standard_librarys_globbing_matches(pattern: str, name: str) -> None:
    expected = fnmatchcase(name.casefold(), pattern.casefold())
    assert matches_pattern(f"acme/{pattern}", f"acme/{name}") == expected


@given(names)
def test_a_name_is_matched_by_itself_whatever_the_case_and_by_a_star(name: str) -> None:
    assert matches_pattern(f"Acme/{name.upper()}", f"acme/{name.lower()}")
    assert matches_pattern("acme/*", f"acme/{name}")
    assert not matches_pattern("acme/*", f"other/{name}")


def test_a_pattern_of_many_stars_is_no_slower_than_the_product_of_the_lengths() -> None:
    assert not matches_pattern("acme/" + "*a" * 90 + "b", "acme/" + "a" * 96)


@pytest.mark.parametrize("pattern", ["acme/*", "acme/harbor-?", "a.b-c/x*y.z_1"])
def test_a_pattern_names_its_owner_and_globs_the_name(pattern: str) -> None:
    assert check_pattern(pattern) == pattern


@pytest.mark.parametrize(
    "pattern", ["*/harbor", "ac?e/x", "acme", "acme/", "/x", "acme/a/b", "acme/[ab]", "../x*"]
)
def test_a_pattern_over_owners_or_with_other_signs_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="owner"):
        check_pattern(pattern)


@pytest.mark.parametrize(
    ("name", "family", "version"),
    [
        ("Qwen/Qwen2.5-0.5B", "qwen", (2, 5)),
        ("Qwen/Qwen3-0.6B", "qwen", (3,)),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama", (3, 1)),
        ("mistralai/Mistral-7B-v0.1", "mistral", (0, 1)),
        ("mistralai/Mixtral-8x7B-v0.1", "mixtral", (0, 1)),
        ("google/gemma-3-270m", "gemma", (3,)),
        ("HuggingFaceTB/SmolLM2-135M", "smollm", (2,)),
        ("microsoft/Phi-3-mini-4k-instruct", "phi", (3,)),
        ("tiny/harbor-2", "harbor", (2,)),
        ("tiny/harbor", "harbor", ()),
    ],
)
def test_family_and_version_are_read_from_a_name(name: str, family: str, version: tuple[int, ...]) -> None:
    assert parse_model_version(name) == ModelVersion(family, version)


@pytest.mark.parametrize(
    ("base", "successor"),
    [
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen3-0.6B-Base"),
        ("Qwen/Qwen2-0.5B", "qwen/Qwen2.5-7B"),
        ("tiny/harbor-1", "tiny/harbor-2"),
        ("tiny/harbor", "tiny/harbor-1"),
        ("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-v0.3"),
    ],
)
def test_a_later_generation_of_the_same_family_and_owner_is_a_successor(base: str, successor: str) -> None:
    assert is_successor(successor, base)
    assert not is_successor(base, successor)


@pytest.mark.parametrize(
    ("base", "other"),
    [
        ("Qwen/Qwen2.5-0.5B", "other/Qwen3-0.6B"),  # another owner
        ("tiny/harbor-1", "tiny/lantern-2"),  # another family
        ("tiny/harbor-2", "tiny/harbor-2"),  # itself
        ("tiny/harbor-3", "tiny/harbor-3.0"),  # the same version
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-7B"),  # another size of the same
        ("tiny/harbor-1", "tiny/harbor-sql-lora-2"),  # what was made of it
    ],
)
def test_what_is_no_later_generation_is_no_successor(base: str, other: str) -> None:
    assert not is_successor(other, base)


@given(families, versions, versions, versions)
def test_successors_are_ordered_like_versions(
    family: str, first: list[int], second: list[int], third: list[int]
) -> None:
    a, b, c = (f"acme/{family}-{'.'.join(map(str, version))}" for version in (first, second, third))
    assert not is_successor(a, a)
    assert not (is_successor(a, b) and is_successor(b, a))
    if is_successor(b, a) and is_successor(c, b):
        assert is_successor(c, a)


@given(names, names)
def test_no_two_names_succeed_each_other_and_no_owner_anothers(one: str, two: str) -> None:
    assert not (is_successor(f"acme/{one}", f"acme/{two}") and is_successor(f"acme/{two}", f"acme/{one}"))
    assert not is_successor(f"acme/{one}", f"other/{two}")
