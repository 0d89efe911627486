"""Tables, notes and headings as data; text, Markdown and HTML are made of them, so nothing is formatted twice."""

from collections.abc import Iterable

import msgspec


class Column(msgspec.Struct, kw_only=True):
    """A column of a table: left-aligned words or right-aligned numbers; cells are cut into lines only if `wraps`."""

    heading: str
    is_number: bool
    wraps: bool = False
    bold: bool = False


class Row(msgspec.Struct, kw_only=True):
    """A row of a table; its cells are plain text, in which a number may be a `Number`."""

    cells: tuple[str, ...]
    bold: bool = False
    ends_section: bool = False


class Table(msgspec.Struct, kw_only=True):
    """A table; all its text is plain, no markup of any kind. The caption, if any, stands below it."""

    title: str
    columns: list[Column] = msgspec.field(default_factory=list)
    rows: list[Row] = msgspec.field(default_factory=list)
    caption: str = ""
    with_headings: bool = True
    narrowest: int = 0  # width in columns of text

    def add_column(self, heading: str, *, is_number: bool = True, bold: bool = False) -> None:
        """Add a column, before the first row."""
        self.columns.append(Column(heading=heading, is_number=is_number, bold=bold))

    def add_row(self, *cells: str, bold: bool = False) -> None:
        """Add a row; cells that are not given are blank."""
        assert len(cells) <= len(self.columns), "a cell without a column"
        blanks = ("",) * (len(self.columns) - len(cells))
        self.rows.append(Row(cells=(*cells, *blanks), bold=bold))

    def add_section(self) -> None:
        """Draw a line below the last row, if there is one."""
        if self.rows:
            self.rows[-1].ends_section = True


class Heading(msgspec.Struct, frozen=True):
    """The heading of all tables of one model: its name, and a sentence on it."""

    name: str
    text: str


class Notes(msgspec.Struct, frozen=True):
    """Notes below a table, one sentence or more each."""

    texts: tuple[str, ...]


Part = Heading | Table | Notes  # of the details of a report


def facts_table(title: str, facts: Iterable[tuple[str, str]]) -> Table:
    """A table with a name and a value in each row."""
    columns = [Column(heading="", is_number=False), Column(heading="", is_number=False, wraps=True)]
    return Table(title=title, columns=columns, rows=[Row(cells=fact) for fact in facts], with_headings=False)


def rows_table(title: str, headings: Iterable[str], *, names: int = 1) -> Table:
    """A table of numbers: the first `names` columns are left-aligned words, the others right-aligned numbers."""
    table = Table(title=title)
    for index, heading in enumerate(headings):
        table.add_column(heading, is_number=index >= names)
    return table
