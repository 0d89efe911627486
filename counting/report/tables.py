"""Tables for all reports, fitted to the width of the output."""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

WIDTH_OF_A_PIPE = 100  # columns, if the output is no terminal and COLUMNS is not set
NARROWEST = 40
WIDTH_WITHOUT_BOUNDS = 1000
HEIGHT = 25
BLANKS_AT_THE_END = re.compile(r"(?: |\x1b\[[0-9;]*m)+$", re.MULTILINE)  # with colour codes


def output_width() -> int:
    """The width in columns: of the terminal on stdout, else COLUMNS, else `WIDTH_OF_A_PIPE`; at least `NARROWEST`."""
    width = 0
    try:
        if sys.stdout.isatty():
            width = os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):  # stdout is closed or not a file
        pass
    if not width:
        given = os.environ.get("COLUMNS", "")
        width = int(given) if given.isascii() and given.isdigit() else 0
    return max(width or WIDTH_OF_A_PIPE, NARROWEST)


def print_rich(*found: "RenderableType", style: str | None = None, narrowest: int = 0) -> None:
    """Print text and tables at `output_width()` or at least `narrowest`, without blanks at line ends."""
    console = _open_console(max(output_width(), narrowest))
    with console.capture() as capture:
        for renderable in found:
            console.print(renderable, style=style)
    print(BLANKS_AT_THE_END.sub(lambda end: end[0].replace(" ", ""), capture.get()), end="")


def print_tables(*tables: "Table") -> None:
    """Print tables one below the other. A table that is too wide is printed in parts; no number is cut."""
    for table in tables:
        for part in _parts(table):
            print_rich("", part, narrowest=_needed(part))


def facts_table(title: str, facts: Iterable[tuple[str, str]]) -> "Table":
    """A table with a name and a value in each row."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, value in facts:
        table.add_row(name, value)
    return table


def rows_table(title: str, headings: Iterable[str], *, names: int = 1) -> "Table":
    """A table of numbers: the first `names` columns are left-aligned words, the others right-aligned numbers."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < names else "right", no_wrap=True)
    return table


def print_notes(notes: Iterable[str]) -> None:
    """Print notes as dim lines below a table."""
    from rich.markup import escape

    print_rich("", *(f"• {escape(note)}" for note in notes), style="dim")


def _open_console(width: int) -> "Console":
    from rich.console import Console

    # With no height, rich assumes 80 columns for a dumb terminal.
    return Console(highlight=False, width=width, height=HEIGHT)


# --- Tables in parts ---------------------------------------------------------------------------------------------


def _parts(table: "Table") -> Iterator["Table"]:
    """The table itself if it fits, with or without borders; else parts with fewer columns each.

    Each part repeats the columns of names and leaves out rows that have only zeros in its columns. A table whose cells
    can wrap is never split.
    """
    width = output_width()
    names = [index for index, column in enumerate(table.columns) if column.justify == "left"]
    numbers = [index for index, column in enumerate(table.columns) if column.justify != "left"]
    if _needed(table) <= width or not numbers:
        yield table
        return
    borderless = _with_columns(table, names, numbers)
    borderless.box = None
    if _needed(borderless) <= width:
        table.box = None
        yield table
        return
    chosen: list[int] = []
    title = table.title
    while numbers:
        chosen.append(numbers.pop(0))
        part = _with_columns(table, names, chosen)
        if numbers and _needed(_with_columns(table, names, [*chosen, numbers[0]])) <= width:
            continue
        if _needed(part) > width:
            part.box = None
        part.title = title
        part.caption = None if numbers else table.caption
        yield part
        title, chosen = f"{table.title}, continued", []


def _needed(table: "Table") -> int:
    """The width in columns that the table needs so that nothing is cut; less if cells can wrap."""
    from rich.measure import Measurement

    boundless = _open_console(WIDTH_WITHOUT_BOUNDS)
    measured = Measurement.get(boundless, boundless.options, table)
    return measured.maximum if all(column.no_wrap for column in table.columns) else measured.minimum


def _with_columns(table: "Table", names: Sequence[int], numbers: Sequence[int]) -> "Table":
    """A copy with only these columns, without title and caption, and without rows whose numbers are all blank or 0."""
    from rich.table import Table

    part = Table(
        title_justify=table.title_justify,
        caption_justify=table.caption_justify,
        box=table.box,
        header_style=table.header_style,
    )
    for column in (table.columns[index] for index in (*names, *numbers)):
        part.add_column(column.header, justify=column.justify, no_wrap=column.no_wrap, style=column.style)
    cells = [list(table.columns[index].cells) for index in (*names, *numbers)]
    for index, row in enumerate(table.rows):
        content = [of_column[index] for of_column in cells]
        if set(content[len(names) :]) <= {"", "0"}:
            if row.end_section and part.rows:
                part.add_section()
            continue
        part.add_row(*content, style=row.style, end_section=row.end_section)
    return part
