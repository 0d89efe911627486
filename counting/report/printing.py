"""Prints tables, notes and headings, fitted to the width of the output."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from counting.report.tables import Heading, Notes, Part, Table
from counting.report.width import output_width

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table as RichTable

WIDTH_WITHOUT_BOUNDS = 1000
HEIGHT = 25
BLANKS_AT_THE_END = re.compile(r"(?: |\x1b\[[0-9;]*m)+$", re.MULTILINE)  # with colour codes


def print_parts(parts: Iterable[Part]) -> None:
    """Print one below the other. A table that is too wide is printed in several; no number is cut."""
    from rich.text import Text

    for part in parts:
        if isinstance(part, Heading):
            _print_rich("", Text.assemble((part.name, "bold"), f" {part.text}"))
        elif isinstance(part, Notes):
            _print_rich("", *(Text(f"• {note}") for note in part.texts), style="dim")
        else:
            for table in _fitted(part):
                _print_rich("", table, narrowest=_needed(table))


def _print_rich(*found: "RenderableType", style: str | None = None, narrowest: int = 0) -> None:
    """Print at `output_width()` or at least `narrowest`, without blanks at line ends."""
    console = _open_console(max(output_width(), narrowest))
    with console.capture() as capture:
        for renderable in found:
            console.print(renderable, style=style)
    print(BLANKS_AT_THE_END.sub(lambda end: end[0].replace(" ", ""), capture.get()), end="")


def _open_console(width: int) -> "Console":
    from rich.console import Console

    # With no height, rich assumes 80 columns for a dumb terminal.
    return Console(highlight=False, width=width, height=HEIGHT)


def _fitted(table: Table) -> "Iterator[RichTable]":
    """The table itself if it fits, with or without borders; else several with fewer columns each.

    Each of these repeats the columns of names and leaves out rows that have only zeros in its columns. A table without
    columns of numbers is never split.
    """
    width = output_width()
    numbers = [index for index, column in enumerate(table.columns) if column.is_number]
    if not numbers or _needed(_as_rich(table)) <= width:
        yield _as_rich(table)
        return
    if _needed(_as_rich(_with_numbers(table, numbers), borders=False)) <= width:
        yield _as_rich(table, borders=False)
        return
    chosen: list[int] = []
    title = table.title
    while numbers:
        chosen.append(numbers.pop(0))
        if numbers and _needed(_as_rich(_with_numbers(table, [*chosen, numbers[0]]))) <= width:
            continue
        part = replace(_with_numbers(table, chosen), title=title, caption="" if numbers else table.caption)
        yield _as_rich(part, borders=_needed(_as_rich(part)) <= width)
        title, chosen = f"{table.title}, continued", []


def _with_numbers(table: Table, numbers: Sequence[int]) -> Table:
    """A copy with the columns of words and these of numbers, without rows whose numbers are all blank or 0."""
    names = [index for index, column in enumerate(table.columns) if not column.is_number]
    part = Table(title="", columns=[table.columns[index] for index in (*names, *numbers)])
    for row in table.rows:
        if not {row.cells[index] for index in numbers} <= {"", "0"}:
            part.rows.append(replace(row, cells=tuple(row.cells[index] for index in (*names, *numbers))))
        elif row.ends_section:
            part.rows[-1:] = [replace(last, ends_section=True) for last in part.rows[-1:]]
    return part


def _as_rich(table: Table, *, borders: bool = True) -> "RichTable":
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(
        title=Text(table.title, style="table.title") if table.title else None,
        title_justify="left",
        caption=Text(table.caption, style="table.caption") if table.caption else None,
        caption_justify="left",
        show_header=table.with_headings,
        box=box.HEAVY_HEAD if borders else None,
        min_width=table.narrowest or None,
    )
    for column in table.columns:
        made.add_column(
            Text(column.heading),
            justify="right" if column.is_number else "left",
            no_wrap=not column.wraps,
            style="bold" if column.bold else None,
        )
    for row in table.rows:
        style = "bold" if row.bold else None
        made.add_row(*map(Text, row.cells), style=style, end_section=row.ends_section)
    return made


def _needed(table: "RichTable") -> int:
    """The width in columns that the table needs so that nothing is cut; less if cells can wrap."""
    from rich.measure import Measurement

    boundless = _open_console(WIDTH_WITHOUT_BOUNDS)
    measured = Measurement.get(boundless, boundless.options, table)
    return measured.maximum if all(column.no_wrap for column in table.columns) else measured.minimum
