"""Pipelines and context parallelism from the layout to the screen, of the page on layouts and of a small model."""

import json
from pathlib import Path

import msgspec
import pytest

from counting.analysis import Analysis, analyze
from counting.report import Results, json_document
from counting.setup import Setup
from tests.screens import printed
from tests.shrunken import LLAMA
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "layouts.md").read_text(encoding="utf-8")
SMALL = spec_from_fields(LLAMA | {"num_hidden_layers": 6}, "small")


def test_a_rank_of_llama_3_8b_as_the_page_on_layouts_has_it() -> None:
    """4 stages of 8 layers, 8 micro-batches of 2,048 tokens, 1F1B; the page has the arithmetic of rank 1."""
    classes = analyze("llama_3_8b", Setup(sequence_length=2048, micro_batches=8), layout=Layout(pp=4)).rank_classes
    assert classes is not None
    assert [each.in_flight for each in classes] == [4, 3, 2, 1]
    peaks = [47_733_408_512, 36_658_086_464, 33_904_394_624, 42_397_933_796]
    assert [each.memory.peak_bytes for each in classes] == peaks
    assert f"assert peak == {peaks[1]:_}" in PAGE
    assert classes[1].memory.states.total == 27_918_336_000
    assert classes[1].memory.phases[-1].communication_buffers == 268_435_456, "the buffers stay"


LAYOUTS = {
    "1f1b": Layout(pp=3, fsdp=2),
    "gpipe": Layout(pp=2, tp=2, schedule="gpipe"),
    "interleaved": Layout(pp=2, dp=2, schedule="interleaved"),
    "zb": Layout(pp=2, schedule="zb"),
    "zbv": Layout(pp=3, schedule="zbv"),
    "dualpipev": Layout(pp=2, fsdp=2, schedule="dualpipev"),
    "cp": Layout(cp=2, fsdp=2),
    "cp and tp": Layout(cp=2, tp=2),
    "cp and pp": Layout(cp=2, pp=2),
    "by hand": Layout(pp=2, stage_layers=(2, 4)),
}


def of_small(layout: Layout) -> Analysis:
    return analyze(SMALL, Setup(sequence_length=64, micro_batches=6), layout=layout)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_kind_of_layout_is_an_answer(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It fits a screen, survives JSON, and has a class for each rank of the pipeline."""
    analysis = of_small(LAYOUTS[name])
    layout, classes = analysis.layout, analysis.rank_classes
    assert layout is not None
    assert classes is not None
    assert sum(each.count for each in classes) == layout.ranks
    assert {each.stage for each in classes} == set(range(layout.pp))
    for each in classes:
        assert each.stages == (layout.stages_of_rank(each.stage) if layout.pp > 1 else (0,))
    lines = printed(capsys, Results(analyses=[analysis])).splitlines()
    assert len(lines) <= 30
    assert [line for line in lines if len(line) > 80] == []
    assert msgspec.json.decode(msgspec.json.encode(analysis), type=Analysis) == analysis
    (document,) = json.loads(json_document(Results(analyses=[analysis])))["analyses"]
    assert document["layout"]["stage_layers"] == (list(layout.stage_layers or ()) or None)
    assert [ranks["stage"] for ranks in document["rank_classes"]] == [each.stage for each in classes]
    axes = {each["axis"] for each in document["rank_classes"][0]["collectives"]}
    assert ("pp" in axes, "cp" in axes) == (layout.pp > 1, layout.cp > 1)
