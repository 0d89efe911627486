"""Figures in the page: each in two sizes, as pictures that hold all they need."""

import sys
import xml.etree.ElementTree as ElementTree
from urllib.parse import unquote

import msgspec
import pytest

from counting.analysis import analyze
from counting.report import Results
from counting.report.figures import caption, embedded_svg, kinds_of
from counting.setup import Setup
from tests.counting.report.page.made import named, page_of
from tests.counting.report.page.parsed import Node, parsed
from tests.shrunken import LLAMA

ODD = """</svg></figure>"><script>alert('1')</script>&lt;--$x$"""
INSIDE = "data:image/svg+xml,"


@pytest.fixture(scope="module")
def results() -> Results:
    return Results(analyses=[named(analyze(LLAMA, Setup(sequence_length=16)), ODD)])


@pytest.fixture(scope="module")
def figures(results: Results) -> list[Node]:
    return parsed(page_of(results)).all("figure")


def svg_in(address: str | None) -> str:
    """The picture; an address with blanks or commas would end there where there are several."""
    assert address is not None
    assert address.startswith(INSIDE)
    rest = address.removeprefix(INSIDE)
    assert not set(rest) & set(' ,<>"#')
    return unquote(rest)


def test_every_kind_has_its_picture_in_two_sizes(results: Results, figures: list[Node]) -> None:
    kinds = kinds_of(results)
    assert kinds == ("parameters", "flops")
    for kind, figure in zip(kinds, figures, strict=True):
        narrow, wide = figure.one("source").attributes, figure.one("img").attributes
        assert narrow["media"] == "screen and (max-width: 40rem)"
        for size, address in (("slide", wide["src"]), ("column", narrow["srcset"])):
            drawn = svg_in(address)
            assert drawn.split() == embedded_svg(kind, results, "slide" if size == "slide" else "column").split()
            assert ElementTree.fromstring(drawn).tag == "{http://www.w3.org/2000/svg}svg"
        assert figure.one("figcaption").text == caption(kind, results)
        assert wide["alt"] == f"{kind}: {caption(kind, results)}"


def test_a_picture_is_a_document_of_its_own(results: Results) -> None:
    """So ids and styles of one figure never meet those of another, and a name in it is no markup of the page."""
    page = parsed(page_of(results))
    assert page.all("svg", "script") == []
    assert len(page.all("style")) == 1
    assert [node for node in page.all("img", "source", "figure", "picture") if "id" in node.attributes] == []


def test_a_figure_of_very_many_things_is_left_out(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    def large(kind: str, results: Results, size: str) -> str:
        return "<svg>" + "x" * (150_000 if kind == "flops" else 50_000) + "</svg>"

    monkeypatch.setattr("counting.report.figures.embedded_svg", large)
    page = parsed(page_of(results))
    assert [(node.attributes["alt"] or "").partition(":")[0] for node in page.all("img")] == ["parameters"]
    said = [node.text for node in page.all("p") if node.text.startswith("Left out")]
    assert said == ["Left out, because it is of too many things: flops."]


def test_without_matplotlib_the_page_says_which_extra_has_it(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = parsed(page_of(results))
    assert page.all("figure") == []
    (said,) = [node.text for node in page.all("p") if "no figures" in node.text]
    assert said.startswith("The page has no figures: ")
    assert 'pip install "model-training-cost-analysis[figures]"' in said
    assert page.all("details")


def test_results_without_a_figure_have_no_heading_for_any() -> None:
    page = parsed(page_of(Results(published=[])))
    assert "Figures" not in [node.text for node in page.all("h2")]
    assert not any("no figures" in node.text for node in page.all("p"))


def test_a_page_that_would_be_too_large_has_the_figures_for_wide_windows(results: Results) -> None:
    (analysis,) = results.analyses
    around = 1_000_000 - len(page_of(results).encode())
    note = "x" * (around + 10 + len("The JSON document is left out"))
    noted = msgspec.structs.replace(results, analyses=[msgspec.structs.replace(analysis, notes=(note,))])
    page = parsed(page_of(noted))
    assert page.all("a") == []
    assert len(page.all("img")) == 2
