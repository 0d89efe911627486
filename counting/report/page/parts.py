"""Tables, notes and the first screen as HTML; every number keeps the value that the JSON document has."""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from counting.report.format import Number
from counting.report.page.elements import Html, element, joined
from counting.report.screen.lines import Fact, Grid, Lines, Question, Sentence, with_unit
from counting.report.tables import Heading, Notes, Part, Table


def folded(parts: Iterable[Part]) -> Html:
    """Headings with their tables below them, each table and each list of notes in a fold of its own."""
    return joined(_folded(part) for part in parts)


def _folded(part: Part) -> Html:
    if isinstance(part, Heading):
        return joined((element("h3", part.name), element("p", part.text)))
    if isinstance(part, Notes):
        return fold("Notes", notes_list(part.texts)) if part.texts else Html()
    caption = (element("p", part.caption, class_="caption"),) if part.caption else ()
    return fold(part.title, table_in_html(part), *caption)


def fold(title: str, *content: str) -> Html:
    """Content that is shown when its title is clicked, and in print."""
    return element("details", element("summary", title), *content)


def notes_list(texts: Sequence[str]) -> Html:
    """One item for each note."""
    return element("ul", *(element("li", text) for text in texts))


def table_in_html(table: Table) -> Html:
    """The table in a box that scrolls if it is too wide."""
    classes = ["number" if column.is_number else "" for column in table.columns]
    rows = [
        element(
            "tr",
            *(
                _cell("th" if index == 0 else "td", cell, classes[index], bold=row.bold or table.columns[index].bold)
                for index, cell in enumerate(row.cells)
            ),
            class_=row.ends_section and "ends",
        )
        for row in table.rows
    ]
    headings = [column.heading for column in table.columns] if table.with_headings else []
    return _scrolling(table.title, headings, classes, rows)


def _scrolling(label: str, headings: Sequence[str], classes: Sequence[str], rows: Iterable[Html]) -> Html:
    """A table in a box that the keyboard scrolls too, named for readers that do not see it."""
    head = [
        element("th", heading, class_=class_ or False, scope="col")
        for heading, class_ in zip(headings, classes, strict=False)
    ]
    top = (element("thead", element("tr", *head)),) if head else ()
    table = element("table", *top, element("tbody", *rows))
    return element("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)


def _cell(name: str, text: str, class_: str, *, bold: bool = False) -> Html:
    shown = _number(text) if isinstance(text, Number) else with_unit(text)
    scope = "row" if name == "th" else False
    return element(name, element("b", shown) if bold else shown, class_=class_ or False, scope=scope)


def _number(number: Number) -> Html:
    """The number as it is shown, with its value as the JSON document has it; all digits appear under the pointer."""
    value = msgspec.json.encode(number.value).decode()
    shows_all = number.replace(",", "") == value
    return element("data", number, value=value, title=not shows_all and value)


# --- The first screen ------------------------------------------------------------------------------------------------


def block_in_html(block: Lines) -> Html:
    """A block of the first screen."""
    return element("section", *_said(block.said))


def _said(said: Sequence[Question | Fact | Sentence | Grid]) -> Iterator[Html]:
    facts: list[Html] = []
    for what in said:
        if isinstance(what, Fact):
            facts += _fact(what)
            continue
        if facts:
            yield element("dl", *facts)
            facts = []
        if isinstance(what, Question):
            yield element("h3", with_unit(what.text))
        elif isinstance(what, Sentence):
            yield element("p", with_unit(what.text))
        else:
            yield _grid(what)
    if facts:
        yield element("dl", *facts)


def _fact(fact: Fact) -> tuple[Html, Html]:
    part = "part" if fact.label.startswith(" ") else False
    return element("dt", fact.label.strip(), class_=part), element("dd", with_unit(fact.text))


def _grid(grid: Grid) -> Html:
    classes = [""] * grid.names + ["number"] * (len(grid.headings) - grid.names)
    rows = [
        element("tr", *(_cell("th" if index == 0 else "td", cell, classes[index]) for index, cell in enumerate(row)))
        for row in grid.rows
    ]
    return _scrolling(", ".join(grid.headings), grid.headings, classes, rows)
