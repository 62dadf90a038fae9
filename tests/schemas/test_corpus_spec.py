"""How a request names a text."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from rebase.cli.request import build_request
from rebase.conversion.plan import plan_conversion
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.repos import CorpusSpec


def test_a_name_is_enough() -> None:
    spec = CorpusSpec(repo_id="acme/texts")
    assert spec.model_dump() == {
        "repo_id": "acme/texts",
        "revision": "main",
        "config": None,
        "split": "train",
        "column": "text",
        "n": 1000,
    }


@pytest.mark.parametrize(
    "field",
    [
        {"repo_id": "../texts"},
        {"repo_id": "/etc/passwd"},
        {"revision": "-x"},
        {"config": "../en"},
        {"config": "a/b"},
        {"split": ""},
        {"split": ".."},
        {"column": ""},
        {"n": 0},
        {"n": 50_001},
        {"script": "load.py"},
    ],
)
def test_nothing_in_it_can_be_a_path_or_without_bounds(field: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CorpusSpec.model_validate({"repo_id": "acme/texts"} | field)


def test_every_field_of_its_own_is_described() -> None:
    for name in ("config", "split", "column", "n"):
        assert CorpusSpec.model_fields[name].description


def test_dotted_keys_name_it_on_the_command_line() -> None:
    request = build_request(
        adapter="a/b", target="c/d", settings=["corpus.repo_id=acme/texts", "corpus.column=body"]
    )
    assert request.corpus == CorpusSpec(repo_id="acme/texts", column="body")


@pytest.mark.parametrize(("asked", "reads"), [(None, True), (True, True), (False, False)])
def test_a_text_that_is_named_is_read_unless_the_precheck_is_told_not_to(
    asked: bool | None, reads: bool
) -> None:
    request = ConversionRequest.model_validate(
        {
            "adapter": {"repo_id": "a/b"},
            "target": {"repo_id": "c/d"},
            "method": "copy",
            "corpus": {"repo_id": "acme/texts"},
            "precheck": {"activations": asked},
        }
    )
    assert plan_conversion(request).needs_corpus is reads
