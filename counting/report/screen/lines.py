"""What the first screen says: headings, labelled facts and columns of numbers, and these as plain text lines."""

import re
import textwrap
from collections.abc import Sequence

import msgspec

INDENT = 2
LABEL = 16  # columns of a label, including the blank after it
NO_BREAK = "\N{NO-BREAK SPACE}"
NUMBER_AND_UNIT = re.compile(r"(?<=\d) (?=[A-Za-z%×])")
BETWEEN_COLUMNS = "  "
SHORTEST_NAME = 8
SHORT_LABELS_BELOW = 72  # columns; labels are shorter there, so that they are not cut


class Question(msgspec.Struct, frozen=True):
    """The heading of a block: what the lines below answer."""

    text: str


class Fact(msgspec.Struct, frozen=True):
    """A label and its text; a label that begins with blanks is of a part of the fact above."""

    label: str
    text: str


class Sentence(msgspec.Struct, frozen=True):
    """A text without a label."""

    text: str


class Grid(msgspec.Struct, frozen=True):
    """Rows of numbers below their headings, of which the first `names` columns are left-aligned words."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int
    less: tuple[str, ...] = ()  # headings of the columns that a narrow output leaves out, the first one first


class Lines:
    """Collects what a block of the first screen says, for lines of at most `width` columns; notes only with `notes`."""

    def __init__(self, width: int, *, notes: bool = True) -> None:
        self.width = width
        self.notes = notes
        self.said: list[Question | Fact | Sentence | Grid] = []

    @property
    def narrow(self) -> bool:
        """Whether labels should be short."""
        return self.width < SHORT_LABELS_BELOW

    def heading(self, text: str) -> None:
        """Add the heading of a block."""
        self.said.append(Question(text))

    def fact(self, label: str, text: str) -> None:
        """Add a label, with the text to the right of it."""
        self.said.append(Fact(label, text))

    def note(self, label: str, text: str) -> None:
        """A fact that explains others; left out where the answers need its place."""
        if self.notes:
            self.fact(label, text)

    def text(self, text: str) -> None:
        """Add text without a label."""
        self.said.append(Sentence(text))

    def columns(self, rows: Sequence[Sequence[str]], *, names: int = 1, less: Sequence[str] = ()) -> None:
        """Add a table; the first row has the headings, and the first `names` columns are left-aligned.

        Columns with a heading only are left out, and those of `less` where the table would be too wide.
        """
        kept = [index for index in range(len(rows[0])) if any(row[index] for row in rows[1:])]
        headings, *others = (tuple(row[index] for index in kept) for row in rows)
        self.said.append(Grid(headings, tuple(others), sum(index < names for index in kept), tuple(less)))

    def rows_left(self, rows: int) -> None:
        """Add a line on how many rows were left out, if any."""
        if rows:
            self.text(f"and {rows} row{'' if rows == 1 else 's'} more, which the details have")

    @property
    def lines(self) -> list[str]:
        """What was added as text lines; in a table that is too wide, gaps get narrower, then names are cut."""
        return [line for what in self.said for line in self._lines_of(what)]

    def _lines_of(self, what: Question | Fact | Sentence | Grid) -> list[str]:
        if isinstance(what, Grid):
            return self._grid(what)
        if isinstance(what, Fact):
            first = f"{' ' * INDENT}{what.label:{LABEL - 1}} "
            return self._wrapped(what.text, first, " " * (INDENT + LABEL))
        return self._wrapped(what.text, "" if isinstance(what, Question) else " " * INDENT, " " * 2 * INDENT)

    def _grid(self, grid: Grid) -> list[str]:
        rows = [grid.headings, *grid.rows]
        widths = _widths(rows)
        for heading in grid.less:
            if INDENT + sum(widths) + len(widths) - 1 > self.width and heading in rows[0]:
                left_out = rows[0].index(heading)
                rows = [row[:left_out] + row[left_out + 1 :] for row in rows]
                widths = _widths(rows)
        beyond = INDENT + sum(widths) + len(BETWEEN_COLUMNS) * (len(widths) - 1) - self.width
        between = BETWEEN_COLUMNS
        if beyond > 0:
            between, beyond = " ", beyond - (len(widths) - 1) * (len(BETWEEN_COLUMNS) - 1)
        for index in range(grid.names):
            cut = min(max(beyond, 0), max(widths[index] - SHORTEST_NAME, 0))
            widths[index] -= cut
            beyond -= cut
        lines = []
        for row in rows:
            cells = [self._cell(row[index], widths[index], index < grid.names) for index in range(len(widths))]
            lines.append((" " * INDENT + between.join(cells)).rstrip())
        return lines

    @staticmethod
    def _cell(text: str, width: int, at_the_left: bool) -> str:
        if len(text) > width:
            text = f"{text[: width - 1]}…"
        return text.ljust(width) if at_the_left else text.rjust(width)

    def _wrapped(self, text: str, first: str, others: str) -> list[str]:
        lines = textwrap.wrap(
            with_unit(text),
            self.width,
            initial_indent=first,
            subsequent_indent=others,
            break_on_hyphens=False,
        )
        return [line.replace(NO_BREAK, " ") for line in lines]


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def with_unit(text: str) -> str:
    """`text` with blanks between a number and its unit that are no place for a line to end."""
    return NUMBER_AND_UNIT.sub(NO_BREAK, text)


def listed(names: Sequence[str]) -> str:
    """The names as "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
