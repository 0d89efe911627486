"""The page: it says what the text says, its numbers are the JSON document's, and text in it is never markup."""

import json
import re
import tomllib
from collections.abc import Iterator

import msgspec
import pytest

from counting.analysis import analyze
from counting.report import Results, json_document
from counting.report.details import details
from counting.report.page import MOST_BYTES, Making, html_page
from counting.report.plain import plain_text
from counting.report.screen import screen_text
from counting.report.tables import Heading, Notes, Table
from counting.setup import Setup
from tests.counting.report.page.made import MAKING, every_kind, named, page_of
from tests.counting.report.page.parsed import Node, numbers_of, parsed, saved_text, tables, words
from tests.shrunken import LLAMA
from torch_models.errors import UserError

KINDS = ("model", "two models", "ranks", "comparison", "budget", "published", "claim")
SCALES = (1, 1e-9, 1e-12, 1e-21)  # of shown numbers: GB, 10^9 parameters; tokens in T; FLOPs in 10^21


@pytest.fixture(scope="module")
def made() -> dict[str, Results]:
    return every_kind()


@pytest.fixture(scope="module")
def pages(made: dict[str, Results]) -> dict[str, Node]:
    return {kind: parsed(page_of(results)) for kind, results in made.items()}


# --- Numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_the_json_document(kind: str, pages: dict[str, Node], made: dict[str, Results]) -> None:
    """To the digit, sums among them: the page works nothing out."""
    in_document = numbers_of(json_document(made[kind]))
    seen = 0
    for title, rows in tables(pages[kind]):
        for data in (data for row in rows for cell in row for data in cell.all("data")):
            assert data.attributes["value"] in in_document, (title, data.text)
            seen += 1
    assert seen > 10


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_shown_of_a_number_is_that_number_rounded(kind: str, pages: dict[str, Node]) -> None:
    for row in pages[kind].all("tr"):
        for data in row.all("data"):
            value, shown = data.attributes["value"] or "", data.text
            if shown.replace(",", "") == value:
                assert "title" not in data.attributes
                continue
            assert data.attributes["title"] == value
            digits = re.sub(r"[$, %T\s]", "", shown)
            mantissa, _, power = digits.partition("e")
            half = 0.5 * 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2])) * (1 + 1e-9)
            scales = (100,) if "%" in shown else (100, *SCALES) if "%" in row.text else SCALES
            assert any(abs(float(digits) - float(value) * scale) <= half for scale in scales), (shown, value)


@pytest.mark.parametrize("kind", KINDS)
def test_no_number_with_separators_is_left_without_its_value(kind: str, pages: dict[str, Node]) -> None:
    """In tables: a cell that is one number, as 1,234 or 12.5, has its value with it, unless it is a share."""
    for title, rows in tables(pages[kind]):
        for cell in (cell for row in rows for cell in row if cell.tag == "td"):
            if re.fullmatch(r"\$?[\d,]*\d(\.\d+)?", cell.text) and "," in cell.text:
                assert cell.all("data"), (title, cell.text)


@pytest.mark.parametrize("kind", KINDS)
def test_the_json_document_can_be_saved(kind: str, pages: dict[str, Node], made: dict[str, Results]) -> None:
    assert saved_text(pages[kind]) == json_document(made[kind])


# --- Words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_the_text_says_is_there(kind: str, pages: dict[str, Node], made: dict[str, Results]) -> None:
    results, page = made[kind], pages[kind]
    shown, found = words(page.text), iter(tables(page))
    for line in plain_text(results).splitlines():
        assert line in page.text
    for part in details(results, "mine.json"):
        if isinstance(part, Heading):
            assert {part.name, words(part.text)} <= {words(node.text) for node in page.all("h3", "p")}
        elif isinstance(part, Notes):
            assert {words(note) for note in part.texts} <= {words(node.text) for node in page.all("li")}
        else:
            assert part.caption in shown
            title, rows = next(found)
            assert title == words(part.title)
            assert_table_is(part, rows)
    assert list(found) == []
    for line in screen_text(results, "mine.json", 10**6, 0).splitlines():
        assert all(word in shown for word in line.split())
    assert {words(item.text) for item in page.all("li")} >= set(results.warnings)


def assert_table_is(table: Table, rows: list[list[Node]]) -> None:
    headings = [[column.heading for column in table.columns]] if table.with_headings else []
    expected = headings + [list(row.cells) for row in table.rows]
    assert [[words(cell.text) for cell in row] for row in rows] == [[words(cell) for cell in row] for row in expected]
    for row, cells in zip(table.rows, rows[len(headings) :], strict=True):
        for column, cell in zip(table.columns, cells, strict=True):
            assert bool(cell.all("b")) == (row.bold or column.bold)


def test_title_names_what_it_is_of(pages: dict[str, Node], made: dict[str, Results]) -> None:
    assert {kind: page.one("h1").text for kind, page in pages.items()} == {
        "model": "small",
        "two models": "small and mixed",
        "ranks": "spread",
        "comparison": "small and mixed",
        "budget": "mixed",
        "published": "Published figures, worked out again",
        "claim": "A claim about a bill",
    }
    many = Results(analyses=[*made["two models"].analyses] * 3)
    assert parsed(page_of(many)).one("h1").text == "6 models"
    assert all(page.one("title").text == f"Training cost: {page.one('h1').text}" for page in pages.values())


# --- One page by itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_it_needs_nothing_else(kind: str, pages: dict[str, Node], made: dict[str, Results]) -> None:
    """No scripts, and whatever an attribute refers to is within the page; so a browser is told to fetch nothing."""
    page = pages[kind]
    nodes = page.all(*{node.tag for node in everything(page)})
    assert {"script", "link", "iframe", "object", "base", "form"}.isdisjoint(node.tag for node in nodes)
    for node in nodes:
        for attribute, value in node.attributes.items():
            assert not attribute.startswith("on")
            if attribute in ("src", "srcset", "href"):
                assert (value or "").startswith("data:")
    policy = [meta.attributes for meta in page.all("meta") if "http-equiv" in meta.attributes]
    assert policy == [
        {
            "http-equiv": "Content-Security-Policy",
            "content": "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
        }
    ]
    style = page.one("style").text
    assert not re.search(r"url\(|@import|</|<!", style)
    assert len(page_of(made[kind]).encode()) <= MOST_BYTES


def everything(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        if isinstance(child, Node):
            yield from everything(child)


def test_the_first_column_names_its_row(pages: dict[str, Node]) -> None:
    """For readers that do not see the table: headings of rows and of columns, and no other cell is one."""
    for page in pages.values():
        for body in page.all("tbody"):
            for row in body.all("tr"):
                first, *others = row.all("th", "td")
                assert (first.tag, first.attributes.get("scope")) == ("th", "row")
                assert {cell.tag for cell in others} <= {"td"}
        for head in page.all("thead"):
            assert {(cell.tag, cell.attributes.get("scope")) for cell in head.all("th", "td")} == {("th", "col")}


def test_what_is_left_out_first_is_the_document_then_figures_for_narrow_windows(
    made: dict[str, Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each limit is just below the size of the page before, which has one thing more."""
    shown, limit = [], MOST_BYTES
    for _ in range(4):
        monkeypatch.setattr("counting.report.page.MOST_BYTES", limit)
        made_page = page_of(made["model"])
        page = parsed(made_page)
        shown.append((bool(page.all("a")), bool(page.all("source")), bool(tables(page))))
        limit = len(made_page.encode()) - 1
    assert shown == [(True, True, True), (False, True, True), (False, False, True), (False, False, False)]
    monkeypatch.setattr("counting.report.page.MOST_BYTES", limit)
    with pytest.raises(UserError, match="even without its tables"):
        page_of(made["model"])


def test_a_page_that_would_be_too_large_has_less(made: dict[str, Results]) -> None:
    results = made["model"]
    (analysis,) = results.analyses
    checks = analysis.agreement.checks * (1 + MOST_BYTES // (90 * len(analysis.agreement.checks)))
    agreement = msgspec.structs.replace(analysis.agreement, checks=checks)
    many = msgspec.structs.replace(results, analyses=[msgspec.structs.replace(analysis, agreement=agreement)])
    assert len(json_document(many)) > MOST_BYTES
    page = parsed(page_of(many))
    assert page.all("a") == []
    assert "The JSON document is left out" in page.text
    assert "Forward FLOPs of one sequence" in [title for title, _ in tables(page)]
    notes = ("x" * MOST_BYTES,)
    noted = msgspec.structs.replace(results, analyses=[msgspec.structs.replace(analysis, notes=notes)])
    page = parsed(page_of(noted))
    assert tables(page) == []
    assert words(page.one("h1").text) == "small"
    warned = msgspec.structs.replace(results, warnings=notes)
    with pytest.raises(
        UserError, match=r"^the page would have 1,\d{3},\d{3} bytes even without its tables, above 1,000,000"
    ):
        page_of(warned)


# --- Text is text ----------------------------------------------------------------------------------------------------

ODD = """</title></style><script>alert("1")</script>&amp;'<!--"""


def test_markup_in_names_paths_and_warnings_is_text(made: dict[str, Results]) -> None:
    analysis = named(analyze(LLAMA, Setup(sequence_length=16)), ODD)
    analysis = msgspec.structs.replace(analysis, notes=(f"note {ODD}",), passed_over_fields=(f"field {ODD}",))
    budget = made["budget"]
    results = msgspec.structs.replace(
        budget, analyses=[analysis], spent=[msgspec.structs.replace(budget.spent[0], model=ODD)], warnings=[f"w {ODD}"]
    )
    making = Making(command=f"costs {ODD}", plan={"model_config": [ODD], "gpus": "\x7f\n\u2028é"}, program=ODD)
    page = parsed(html_page(results, f"path {ODD}", making))
    assert page.all("script") == []
    assert page.one("h1").text == ODD
    assert page.one("title").text == f"Training cost: {ODD}"
    for text in (f"note {ODD}", f"field {ODD}", f"w {ODD}", f"costs {ODD}", f"path {ODD}"):
        assert words(text) in words(page.text)
    labels = [node.attributes["aria-label"] for node in page.all("div")]
    assert {f"The budget spent on {ODD}", f"A model designed for the budget, written to path {ODD}"} <= set(labels)
    assert json.loads(saved_text(page))["analyses"][0]["name"] == ODD
    plan = page.all("code")[-1].text
    assert tomllib.loads(plan) == {"model_config": [ODD], "gpus": "\x7f\n\u2028é"}


def test_the_command_and_its_plan_stand_on_the_page(made: dict[str, Results]) -> None:
    page = parsed(page_of(made["model"]))
    command, plan = page.all("code")
    assert command.text == MAKING.command
    assert plan.text == 'model_config = ["small"]'
    assert page.one("footer").text == "Made by costs 1.0."
