"""The layer map in the pushed folder: a picture and two sentences beside the numbers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from rebase.cache.factor_cache import FactorCache
from rebase.conversion.pipeline import ConversionResult, run_conversion
from rebase.conversion.plan import plan_conversion
from rebase.errors import IncompatiblePair
from rebase.hub.local import LocalHub
from rebase.report.layer_heatmap import draw_layer_map, get_color
from rebase.report.progress import NullReporter
from rebase.report.schema import CorpusInfo, LayerMap
from rebase.runtime import Runtime
from rebase.schemas.conversions import ConversionRequest
from support.tiny_repos import ADAPTER, NEW, make_hub

CPU = torch.device("cpu")
EXAMPLES = Path(__file__).parents[2] / "examples" / "hub"
TEXT = CorpusInfo(name="some", digest="0" * 64, documents=3)


def _map(sources: int, targets: int) -> LayerMap:
    similarity = [
        [max(0.0, 1.0 - abs(s / sources - t / targets)) for t in range(targets)] for s in range(sources)
    ]
    return LayerMap(
        similarity=similarity,
        layers=[t * sources // targets for t in range(targets)],
        coverage=0.5,
        threshold=0.7,
        positions=2048,
        coverage_source=0.9,
        coverage_target=0.8,
        corpus=TEXT,
    )


@pytest.mark.parametrize(("sources", "targets"), [(1, 1), (6, 6), (30, 18), (80, 80)])
def test_a_map_of_any_depth_is_drawn_and_always_the_same(sources: int, targets: int) -> None:
    drawn = draw_layer_map(_map(sources, targets), "acme/old", "acme/new")
    assert drawn == draw_layer_map(_map(sources, targets), "acme/old", "acme/new")
    picture = Image.open(io.BytesIO(drawn))
    assert picture.format == "PNG"
    assert 600 < picture.width < 2400


def test_colours_rise_with_similarity_and_stay_in_their_range() -> None:
    brightness = [sum(get_color(value / 10)) for value in range(11)]
    assert brightness == sorted(brightness)
    assert get_color(-0.2) == get_color(0.0)
    assert get_color(1.2) == get_color(1.0)


def test_a_map_that_contradicts_itself_is_refused() -> None:
    whole = _map(3, 2).model_dump()
    for wrong in ({"layers": [0]}, {"layers": [0, 3]}, {"biased": [0.5]}, {"similarity": []}):
        with pytest.raises(ValidationError):
            LayerMap.model_validate({**whole, **wrong})


def _run(hub: Path, tmp_path: Path, out: str, **request: Any) -> ConversionResult:
    tools = Runtime(LocalHub(hub), FactorCache(tmp_path / "cache", 2**28), CPU, scratch_dir=tmp_path)
    wanted = ConversionRequest.model_validate({"method": "copy", **request})
    found = run_conversion(
        plan_conversion(wanted, "convert"), tools, NullReporter(), tmp_path / out, marker=None
    )
    assert isinstance(found, ConversionResult)
    return found


def test_the_folder_has_the_picture_where_both_bases_read_a_text(tmp_path: Path) -> None:
    repos = {
        "adapter": {"repo_id": "tiny/harbor-sql-lora"},
        "source": {"repo_id": "tiny/harbor-1"},
        "target": {"repo_id": "tiny/harbor-2"},
    }
    for name, reads in (("read", True), ("plain", False)):
        precheck = {"activations": reads, "on_incompatible": "warn"}
        found = _run(EXAMPLES, tmp_path, name, precheck=precheck, **repos)
        assert (tmp_path / name / "layer_similarity.png").exists() is reads
        assert ("layer_similarity.png" in (tmp_path / name / "README.md").read_text()) is reads
        assert (found.report.layer_map is not None) is reads


def test_tokenizers_that_share_no_ends_are_refused(tmp_path: Path) -> None:
    """These know pairs of letters only, and find none in the bundled text."""
    with pytest.raises(IncompatiblePair, match="share only") as caught:
        _run(
            make_hub(tmp_path / "hub"),
            tmp_path,
            "out",
            adapter={"repo_id": ADAPTER},
            target={"repo_id": NEW},
            precheck={"activations": True},
        )
    assert caught.value.pointer == "/corpus"
