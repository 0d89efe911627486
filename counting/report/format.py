"""How numbers, units and tables look, the same in every report."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NONE = "\N{EN DASH}"  # where there is no number
WIDTH_OF_A_PIPE = 110  # columns: what the tables of a mixture of experts need
WIDTH_WITHOUT_BOUNDS = 1000


def integer(value: int) -> str:
    """1234567 -> 1,234,567."""
    return f"{value:,}"


def share(part: int, whole: int) -> str:
    """A percentage; what is there but rounds to nothing is not called 0 %."""
    percent = 100 * part / whole
    return "< 0.01 %" if part and percent < 0.01 else f"{percent:.2f} %"


def shifted(value: int, decimals: int, *, places: int | None = None) -> str:
    """`value` / 10^decimals in decimal digits: all of them, or rounded to `places`."""
    if places is not None:
        return f"{value / 10**decimals:,.{places}f}"
    whole, rest = divmod(value, 10**decimals)
    return f"{whole}.{rest:0{decimals}d}".rstrip("0").rstrip(".")


def percent(part: float, places: int = 2) -> str:
    """0.4373 -> 43.73 %."""
    return f"{100 * part:,.{places}f} %"


def dollars(amount: float) -> str:
    """Whole dollars; cents where they matter."""
    return f"${amount:,.0f}" if amount >= 1000 else f"${amount:,.2f}"


def scientific(value: float) -> str:
    """Four digits and a power of ten."""
    return f"{value:.3e}"


def optional(value: float | None, places: int = 0) -> str:
    """A number, or a dash where there is none."""
    return NONE if value is None else f"{value:,.{places}f}"


def length_source(source: str | None) -> str:
    """Who says how long a sequence is: whoever gave it, or a field of the config."""
    return "given" if source == "given" else f"from {source}"


# --- Tables ----------------------------------------------------------------------------------------------------


def open_console(narrowest: int = 0) -> "Console":
    """A console as wide as the terminal, where there is one, and no narrower than asked for."""
    from rich.console import Console

    console = Console(highlight=False)
    needed = narrowest if console.is_terminal else max(narrowest, WIDTH_OF_A_PIPE)
    return console if console.width >= needed else Console(highlight=False, width=needed)


def print_tables(*tables: "Table") -> None:
    """Tables under each other, whole: a terminal too narrow for one breaks its lines, and no digit is cut."""
    from rich.measure import Measurement

    for table in tables:
        boundless = open_console(WIDTH_WITHOUT_BOUNDS)
        width = Measurement.get(boundless, boundless.options, table)
        console = open_console(width.maximum if all(column.no_wrap for column in table.columns) else width.minimum)
        console.print()
        console.print(table)


def facts_table(title: str, facts: Iterable[tuple[str, str]]) -> "Table":
    """A table of names and values."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, value in facts:
        table.add_row(name, value)
    return table


def rows_table(title: str, headings: Iterable[str], *, names: int = 1) -> "Table":
    """A table of numbers: the first `names` columns are words, the others stand at the right."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < names else "right", no_wrap=True)
    return table


def print_notes(notes: Iterable[str]) -> None:
    """What a table rests on, in dim lines below it."""
    from rich.markup import escape

    console = open_console()
    console.print()
    for note in notes:
        console.print(f"• {escape(note)}", style="dim")
