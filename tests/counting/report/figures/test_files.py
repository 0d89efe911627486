"""Figures as files: the same bytes each time, of a known size, with text as text, and readable."""

import re
import struct
import sys
from itertools import combinations
from xml.etree import ElementTree

import matplotlib as mpl
import msgspec
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from counting.report.figures import FIGURE_KINDS, FigureFormat, FigureSize, draw, embedded_svg, kinds_of
from counting.report.figures.drawing.letters import width_of, wrapped
from counting.report.results import Fitted, Results
from tests.counting.report.figures.drawn import sheet_of
from tests.counting.report.figures.results import dense, results_of, routed
from torch_models.errors import UserError

KINDS = (*FIGURE_KINDS, "fit")
SIZES: tuple[FigureSize, ...] = ("slide", "column")
SVG = "{http://www.w3.org/2000/svg}"


def words_of(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_one_that_its_results_have(kind: str) -> None:
    assert kind in kinds_of(results_of(kind))


@pytest.mark.parametrize("file_format", ["svg", "png", "pdf"])
def test_the_same_results_give_the_same_bytes(file_format: FigureFormat) -> None:
    first, *others = (draw("bill", results_of("bill"), file_format) for _ in range(4))
    assert others == [first] * 3
    assert first.startswith({"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}[file_format])
    assert not re.search(rb"(?i)<dc:date>|CreationDate|\(matplotlib|matplotlib v", first)


@pytest.mark.parametrize("kind", KINDS)
def test_svg_is_small_and_has_its_words(kind: str) -> None:
    svg = draw(kind, results_of(kind), "svg")
    assert len(svg) < 80_000
    words = " ".join(words_of(svg.decode()))
    assert {
        "comparison": "FLOPs to train one token",
        "law": "What $5 M of training buys",
        "bill": "price of an hour: H100 $3.00, A100",
        "ranks": "all 4 ranks",
        "memory": "backward 2 of 2",
        "parameters": "word embedding",
        "flops": "multi-token prediction",
        "fit": "Scaling law ours, fitted to 7 runs",
    }[kind] in words


@pytest.mark.parametrize(("size", "pixels"), [("slide", (1600, 900)), ("column", (990, None))])
def test_size_of_a_png(size: FigureSize, pixels: tuple[int, int | None]) -> None:
    width, height = struct.unpack(">II", draw("parameters", results_of("parameters"), "png", size)[16:24])
    assert (width, pixels[1] and height) == pixels


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_no_text_is_cut(kind: str, size: FigureSize) -> None:
    """Every text lies within the sheet, and those outside the axes do not overlap: titles, legend, caption."""
    sheet = sheet_of(kind, results_of(kind), size)
    FigureCanvasAgg(sheet.figure).draw()
    whole = sheet.figure.bbox.padded(1)
    boxes = {text.get_text(): text.get_window_extent() for text in shown_texts(sheet.figure)}
    assert [words for words, box in boxes.items() if not (whole.contains(*box.min) and whole.contains(*box.max))] == []
    blocks = [text.get_window_extent() for text in sheet.figure.texts if text.get_text()]
    for one, other in combinations(blocks, 2):
        assert min(one.y1, other.y1) - max(one.y0, other.y0) < 0.2 * min(one.height, other.height)


def shown_texts(figure: Figure) -> list[Text]:
    """All texts but the labels of ticks that are outside of their axis."""
    hidden = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        hidden |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
        hidden |= {tick.label1 for tick in axis.get_minor_ticks()}
        hidden |= set() if axis.axes.axison else set(axis.findobj(Text))
    found = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    return [text for text in found if text.get_text().strip() and text.get_visible() and text not in hidden]


def test_settings_of_matplotlib_do_not_matter_and_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = draw("flops", results_of("flops"), "svg")
    monkeypatch.setitem(mpl.rcParams, "font.size", 40.0)
    monkeypatch.setitem(mpl.rcParams, "axes.grid", True)
    assert draw("flops", results_of("flops"), "svg") == plain
    assert (mpl.rcParams["font.size"], mpl.rcParams["axes.grid"]) == (40, True)


def test_embedded_svg_stands_in_a_page() -> None:
    """One element, transparent, without the caption; its ids are its own, and every reference has its id."""
    svg = embedded_svg("memory", results_of("memory"))
    assert svg.startswith("<svg ")
    assert not re.search(r"<script|<image|https?://(?!www\.w3\.org|purl\.org|creativecommons\.org)", svg)
    assert "not seconds" not in " ".join(words_of(svg))
    assert "not seconds" in " ".join(words_of(draw("memory", results_of("memory"), "svg").decode()))
    ids = re.findall(r' id="([^"]*)"', svg)
    assert all(each.startswith("memory-") for each in ids)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]*)', svg)) <= set(ids)
    first = next(iter(ElementTree.fromstring(svg).iter(f"{SVG}path")))
    assert "fill: none" in first.attrib["style"] or "opacity: 0" in first.attrib["style"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ('<b>"x"&amp;', '<b>"x"&amp;'),
        ("$x^2$", "$x^2$"),
        ("_underscore", "\u200b_underscore"),
        ("a\x01b", "a\ufffdb"),
        ("a\nb", "a b"),
        ("模型", "模型"),
        ("m" * 90, "m" * 31 + "…"),
    ],
)
def test_a_name_is_text(name: str, shown: str) -> None:
    """Markup, mathematics, letters that the font lacks: nothing of it is read, and no warning comes of it."""
    analyses = [msgspec.structs.replace(dense(), name=name), routed()]
    svg = draw("parameters", Results(analyses=analyses), "svg").decode()
    assert shown in words_of(svg)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r'extra figures: pip install "model-training-cost-analysis\[figures\]"$'):
        draw("flops", results_of("flops"), "svg")


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("spam", "figure 'spam': is not known: choose from memory, parameters, flops"),
        ("law", "figure 'law': is of another job: choose from memory, parameters, flops"),
    ],
)
def test_kind_that_these_results_do_not_have(kind: str, rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        draw(kind, results_of("memory"), "svg")


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_with_control_characters_is_valid_xml(kind: str) -> None:
    """In texts and in ids, of which no two are alike."""
    results, name = results_of(kind), "a\x01\ud800b"
    if not isinstance(results, Fitted):  # a law's name is checked: it has no such characters
        results = Results(
            analyses=[msgspec.structs.replace(each, name=name) for each in results.analyses],
            runs=[msgspec.structs.replace(each, model=name) for each in results.runs],
            comparison=results.comparison,
            budget=results.budget,
            spent=[msgspec.structs.replace(each, model=name) for each in results.spent],
        )
    ids = [each.get("id") for each in ElementTree.fromstring(draw(kind, results, "svg")).iter() if each.get("id")]
    assert len(ids) == len(set(ids))


def test_lines_are_as_wide_as_their_letters() -> None:
    for text in ("W" * 40, "W" * 20 + " " + "i" * 90, "one two three"):
        lines = wrapped(text, 200, 20, "bold")
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert max(width_of(each, 20, "bold") for each in lines) <= 200


def test_too_many_models_for_one_figure() -> None:
    with pytest.raises(UserError, match="flops shows at most 8 models in one figure, not 9: name fewer"):
        draw("flops", Results(analyses=[dense()] * 9), "svg")
