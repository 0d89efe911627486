"""Lines of the first screen: headings, labelled facts, and columns of numbers, in plain text."""

import re
import textwrap
from collections.abc import Sequence

INDENT = 2
LABEL = 16  # columns of a label, including the blank after it
NO_BREAK = "\N{NO-BREAK SPACE}"
NUMBER_AND_UNIT = re.compile(r"(?<=\d) (?=[A-Za-z%×])")
BETWEEN_COLUMNS = "  "
SHORTEST_NAME = 8


class Lines:
    """Collects text lines that are at most `width` columns wide; notes only with `notes`."""

    def __init__(self, width: int, *, notes: bool = True) -> None:
        self.width = width
        self.notes = notes
        self.lines: list[str] = []

    def heading(self, text: str) -> None:
        """Add the heading of a block."""
        self.lines += self._wrapped(text, "", " " * 2 * INDENT)

    def fact(self, label: str, text: str) -> None:
        """Add a label, with the wrapped text to the right of it."""
        self.lines += self._wrapped(text, f"{' ' * INDENT}{label:{LABEL - 1}} ", " " * (INDENT + LABEL))

    def note(self, label: str, text: str) -> None:
        """A fact that explains others; left out where the answers need its place."""
        if self.notes:
            self.fact(label, text)

    def text(self, text: str) -> None:
        """Add wrapped text without a label."""
        self.lines += self._wrapped(text, " " * INDENT, " " * 2 * INDENT)

    def columns(self, rows: Sequence[Sequence[str]], *, names: int = 1) -> None:
        """Add a table; the first row has the headings, and the first `names` columns are left-aligned.

        Columns with a heading only are left out. In a table that is too wide, gaps get narrower, then names are cut.
        """
        kept = [index for index in range(len(rows[0])) if any(row[index] for row in rows[1:])]
        widths = {index: max(len(row[index]) for row in rows) for index in kept}
        beyond = INDENT + sum(widths.values()) + len(BETWEEN_COLUMNS) * (len(kept) - 1) - self.width
        between = BETWEEN_COLUMNS
        if beyond > 0:
            between, beyond = " ", beyond - (len(kept) - 1) * (len(BETWEEN_COLUMNS) - 1)
        for index in [index for index in kept if index < names]:
            cut = min(max(beyond, 0), max(widths[index] - SHORTEST_NAME, 0))
            widths[index] -= cut
            beyond -= cut
        for row in rows:
            cells = [self._cell(row[index], widths[index], index < names) for index in kept]
            self.lines.append((" " * INDENT + between.join(cells)).rstrip())

    def rows_left(self, rows: int) -> None:
        """Add a line on how many rows were left out, if any."""
        if rows:
            self.text(f"and {rows} row{'' if rows == 1 else 's'} more, which the details have")

    @staticmethod
    def _cell(text: str, width: int, at_the_left: bool) -> str:
        if len(text) > width:
            text = f"{text[: width - 1]}…"
        return text.ljust(width) if at_the_left else text.rjust(width)

    def _wrapped(self, text: str, first: str, others: str) -> list[str]:
        lines = textwrap.wrap(
            NUMBER_AND_UNIT.sub(NO_BREAK, text),
            self.width,
            initial_indent=first,
            subsequent_indent=others,
            break_on_hyphens=False,
        )
        return [line.replace(NO_BREAK, " ") for line in lines]


def listed(names: Sequence[str]) -> str:
    """The names as "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
