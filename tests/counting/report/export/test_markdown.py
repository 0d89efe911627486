"""The report in GitHub's Markdown: read by a reader of Markdown, it says what the tables say."""

import json
from collections import Counter
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from counting.analysis import analyze
from counting.cost.budget import plan_budget
from counting.report import Results
from counting.report.details import details
from counting.report.export.markdown import _as_it_is, _table, escaped, markdown_text
from counting.report.tables import Column, Heading, Notes, Row, Table
from counting.setup import Setup
from model_training_cost_analysis import main
from tests.shrunken import DEEPSEEK_V3
from torch_models.fields.config import spec_from_fields

READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
HOSTILE = r"<b>a</b>|`c`*d*_e_[f](g)$h$&amp;~~i~~\j # k"


def tables_of(markdown: str) -> list[list[list[str]]]:
    """The text of all cells, row by row, of each table."""
    tables: list[list[list[str]]] = []
    in_cell = False
    for token in READER.parse(markdown):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type in ("th_open", "td_open", "th_close", "td_close"):
            in_cell = token.type.endswith("open")
        elif token.type == "inline" and in_cell:
            tables[-1][-1].append("".join(child.content for child in token.children or ()))
    return tables


def results_of(name: str) -> Results:
    analysis = analyze(spec_from_fields(DEEPSEEK_V3, name), Setup(sequence_length=16))
    return Results(analyses=[analysis], budget=plan_budget(5e6), warnings=["a warning of a_b"])


@pytest.fixture(scope="module")
def results() -> Results:
    return results_of("tiny")


def test_tables_say_what_the_details_say(results: Results) -> None:
    found = tables_of(markdown_text(results, None, proof=False))
    shown = [part for part in details(results, None) if isinstance(part, Table) and part.with_headings]
    assert len(shown) >= 6
    for table in shown:
        headings = [column.heading for column in table.columns]
        assert [headings, *([*row.cells] for row in table.rows)] in found, table.title


def test_all_that_the_text_says_of_tables_is_said(results: Results) -> None:
    """Every title, name, cell, caption and note, also of tables without headings, as escaped text."""
    text = markdown_text(results, None, proof=False)
    said, kinds = set(text.splitlines()), Counter[str]()
    cells = {cell.strip().strip("*:") for line in said for cell in line.lstrip("- ").split("|")}
    for part in details(results, None):
        if isinstance(part, Heading):
            assert f"## {escaped(part.name)}: tables" in said
            assert escaped(f"{part.name} {part.text}") in said
        elif isinstance(part, Notes):
            assert {f"- {escaped(note)}" for note in part.texts} <= said
        else:
            assert not part.title or f"### {escaped(part.title)}" in said
            assert not part.caption or escaped(part.caption) in said
            for row in part.rows:
                if part.with_headings:
                    assert {escaped(cell).strip() for cell in row.cells} <= cells
                else:
                    name, *others = row.cells
                    assert any(
                        line.startswith(f"- **{escaped(name)}:** ") and all(escaped(cell) in line for cell in others)
                        for line in said
                    )
            kinds += Counter({"caption": bool(part.caption), "no headings": not part.with_headings})
        kinds[type(part).__name__] += 1
    assert all(kinds[kind] for kind in ("caption", "no headings", "Heading", "Notes", "Table")), kinds


def made_table(**fields: Any) -> str:
    columns = [Column(heading="name", is_number=False), Column(heading="value", is_number=True)]
    rows = [Row(cells=("a", "1")), Row(cells=("b", "2"), bold=True)]
    return "\n\n".join(_table(Table(title="Title", columns=columns, rows=rows, **fields)))


def test_a_table_to_the_character() -> None:
    """Names on the left, numbers on the right, the total bold, the caption below."""
    assert made_table(caption="Of a $ and b_c.") == (
        "### Title\n\n| name  | value |\n| ----- | ----: |\n| a     |     1 |\n| **b** | **2** |\n\nOf a \\$ and b_c."
    )


def test_a_table_without_headings_is_a_list() -> None:
    assert made_table(with_headings=False).endswith("- **a:** 1\n- **b:** 2")


def test_a_fence_is_longer_than_any_in_its_text() -> None:
    assert list(_as_it_is("a")) == ["```text\na\n```"]
    assert list(_as_it_is("a\n````\nb")) == ["`````text\na\n````\nb\n`````"]
    assert list(_as_it_is("")) == []


def test_a_dollar_is_no_formula() -> None:
    assert escaped("$5 to $6") == r"\$5 to \$6"


def test_the_answer_stands_first(results: Results) -> None:
    text = markdown_text(results, None, proof=False)
    assert text.startswith("```text\nNumber of parameters: 361312\n")
    order = [
        "\n\n> **Warning:** a warning of a_b\n",
        "\n- **parameters:** 361,312",
        "\n## tiny: tables\n",
        "### Parameters\n",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "witness" not in text
    assert "\n    router " in markdown_text(results, None, proof=True)


def test_what_a_name_has_in_it_is_text() -> None:
    text = markdown_text(results_of(HOSTILE), None, proof=True)
    html = READER.render(text)
    assert "<b>a" not in html
    assert "<h2>" + "&lt;b&gt;a&lt;/b&gt;|`c`*d*_e_[f](g)$h$&amp;amp;~~i~~\\j # k: tables</h2>" in html
    assert "<em>" not in html
    assert "<a " not in html
    assert "<del>" not in html


@pytest.mark.parametrize(
    "text", [HOSTILE, "word_embedding", "_x_", "1. one", "- a", "# b", "> c", "3) d", "+", "* e", "a\nb"]
)
def test_text_is_read_as_it_is(text: str) -> None:
    html = READER.render(escaped(text))
    assert unescape(html) == f"<p>{' '.join(text.split())}</p>\n"


def test_plain_words_are_not_changed() -> None:
    for plain in ("word_embedding", "4.378e+24, 292 GFLOP a token", "-10,867", "0.4 (best)", "6 N' + full attention"):
        assert escaped(plain) == plain


def test_the_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V3))
    assert main(["--model_config", str(tmp_path), "--seq_len", "16", "--markdown"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith("```text\nNumber of parameters: 361312\n")
    assert "| routed_experts " in captured.out
    assert main(["--model_config", str(tmp_path), "--markdown", "--json"]) == 2
    assert capsys.readouterr().err == "error: give either --json or --markdown: both are all that is printed\n"
