"""Tables in the width that there is."""

import os
import re
import sys

import pytest

from counting.report.printing import print_parts
from counting.report.tables import Heading, Notes, facts_table, rows_table
from counting.report.width import output_width


@pytest.mark.parametrize(
    ("columns", "expected"), [("80", 80), ("200", 200), ("7", 40), ("", 100), ("wide", 100), ("0", 100), (None, 100)]
)
def test_the_width_of_a_pipe(columns: str | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if columns is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", columns)
    assert output_width() == expected


def test_the_width_of_a_terminal_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it does not know its own."""
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1, raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda descriptor: os.terminal_size((132, 40)))
    assert output_width() == 132
    monkeypatch.setattr(os, "get_terminal_size", lambda descriptor: os.terminal_size((0, 0)))
    assert output_width() == 70


def lines_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int, rows: list[list[str]]
) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    table = rows_table("A title", ["name", *("ABCDE"[: len(rows[0]) - 1])])
    for row in rows:
        table.add_row(*row)
    print_parts([table])
    return capsys.readouterr().out.splitlines()


def test_borders_go_before_columns_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [["one", *(digit * 10 for digit in "1234")]]
    widths = {width: lines_of(monkeypatch, capsys, width, rows) for width in (100, 58, 57, 40)}
    assert widths[100][2].startswith("┏")
    assert [line.split() for line in widths[57][2:]] == [["name", "A", "B", "C", "D"], rows[0]]
    assert widths[40][1] == "A title"
    assert "A title, continued" in widths[40]
    for digits in rows[0][1:]:
        assert sum(digits in line for line in widths[40]) == 1
    assert all(len(line) <= width for width, lines in widths.items() for line in lines)


def test_colours_leave_no_blanks_at_the_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    lines = lines_of(monkeypatch, capsys, 80, [["one", "1"], ["another", "22"]])
    print_parts([Notes(("a note of [b]two words", "and another"))])
    notes = capsys.readouterr().out
    assert all("\x1b[" in text for text in ("".join(lines), notes))
    assert "[b]two" in notes
    for line in [*lines, *notes.splitlines()]:
        shown = re.sub(r"\x1b\[[0-9;]*m", "", line)
        assert shown == shown.rstrip()


def test_rows_that_say_nothing_in_a_part_keep_its_sections(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = rows_table("T", ["name", "A", "B"])
    long = "9" * 18
    table.add_row("first", long, "0")
    table.add_row("second", "0", long)
    table.add_section()
    table.add_row("third", long, long)
    print_parts([table])
    first, second = capsys.readouterr().out.split("T, continued\n")
    assert ("second" in first, "first" in second) == (False, False)
    assert first.count("├") == second.count("├") == 1


def test_text_is_never_markup(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Square brackets, names of emoji and backslashes are printed as they are, wherever they stand."""
    monkeypatch.setenv("COLUMNS", "100")
    odd = "[b]odd[/b] :fire: \\"
    table = rows_table(f"title {odd}", [f"heading {odd}", "n"])
    table.add_row(f"cell {odd}", "1")
    table.caption = f"caption {odd}"
    facts = facts_table("facts", [(f"name {odd}", f"value {odd}")])
    print_parts([Heading(f"name {odd}", f"text {odd}"), table, Notes((f"note {odd}",)), facts])
    out = capsys.readouterr().out
    assert out.count(odd) == 9
    assert f"name {odd} text {odd}\n" in out


def test_a_row_has_no_more_cells_than_columns() -> None:
    table = rows_table("T", ["name", "A", "B"])
    table.add_row("one")
    assert table.rows[0].cells == ("one", "", "")
    with pytest.raises(AssertionError, match="a cell without a column"):
        table.add_row("one", "1", "2", "3")
