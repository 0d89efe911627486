"""Results in GitHub's Markdown: the answer of the first screen, then all tables, all text escaped."""

import re
from collections.abc import Iterable, Iterator, Sequence

from counting.report.details import details
from counting.report.model.proof import proof_in_words, proof_text
from counting.report.plain import plain_text
from counting.report.results import Results
from counting.report.screen import screen_blocks
from counting.report.screen.lines import Fact, Grid, Lines, Question
from counting.report.tables import Heading, Notes, Part, Table

WIDTH = 100  # columns of what stands as it is
# What Markdown, or GitHub's dialect of it, would read as more than text. Within words an underscore is one.
MEANS_MORE = re.compile(r"[\\`*\[<&|~$]|(?<![^\W_])_|_(?![^\W_])")
BEGINS_MORE = re.compile(r"^(#+|[-+>]|\d+[.)])(?=\s|$)")  # a heading, a list, a quotation


def markdown_text(results: Results, design_path: str | None, *, proof: bool) -> str:
    """All results; `design_path` is the file to which a designed model's config was written.

    `proof` adds a list of every number with the values of all its witnesses.
    """
    blocks = [
        *_as_it_is(plain_text(results)),
        *(f"> **Warning:** {escaped(warning)}" for warning in results.warnings),
        *(block for lines in screen_blocks(results, design_path) for block in _answer(lines)),
        *(block for part in details(results, design_path) for block in _part(part)),
    ]
    if proof:
        for analysis in results.analyses:
            blocks += [
                f"## {escaped(analysis.name)}: {escaped(proof_in_words(analysis.agreement))}",
                *_as_it_is(proof_text(analysis.agreement, WIDTH)),
            ]
    return "\n\n".join(blocks)


def escaped(text: str) -> str:
    """The text on one line, so that Markdown shows it as it is."""
    line = MEANS_MORE.sub(r"\\\g<0>", " ".join(text.split()))
    return BEGINS_MORE.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", line)


def _as_it_is(text: str) -> Iterator[str]:
    """A block that Markdown does not touch, if there is a text; its fence is longer than any in it."""
    if text:
        fence = "`" * max(3, *(len(ticks) + 1 for ticks in re.findall("`+", text)), 3)
        yield f"{fence}text\n{text}\n{fence}"


def _answer(lines: Lines) -> Iterator[str]:
    """A heading, then facts as a list and numbers as tables."""
    listed: list[str] = []
    for said in lines.said:
        if isinstance(said, Question | Grid):
            if listed:
                yield "\n".join(listed)
            listed = []
        if isinstance(said, Question):
            yield f"## {escaped(said.text)}"
        elif isinstance(said, Grid):
            numbers = [index >= said.names for index in range(len(said.headings))]
            yield _grid([escaped(heading) for heading in said.headings], numbers, [_cells(row) for row in said.rows])
        elif isinstance(said, Fact):
            listed.append(f"{'  ' * said.label.startswith(' ')}- **{escaped(said.label)}:** {escaped(said.text)}")
        else:
            listed.append(f"- {escaped(said.text)}")
    if listed:
        yield "\n".join(listed)


def _part(part: Part) -> Iterator[str]:
    if isinstance(part, Heading):
        yield f"## {escaped(part.name)}: tables"
        yield escaped(f"{part.name} {part.text}")
    elif isinstance(part, Notes):
        yield "\n".join(f"- {escaped(note)}" for note in part.texts)
    else:
        yield from _table(part)


def _table(table: Table) -> Iterator[str]:
    if table.title:
        yield f"### {escaped(table.title)}"
    rows = [_cells(row.cells, bold=row.bold and table.with_headings) for row in table.rows]
    if table.with_headings:
        numbers = [column.is_number for column in table.columns]
        yield _grid([escaped(column.heading) for column in table.columns], numbers, rows)
    else:
        yield "\n".join(f"- **{name}:** {' '.join(others)}" for name, *others in rows)
    if table.caption:
        yield escaped(table.caption)


def _cells(cells: Sequence[str], *, bold: bool = False) -> list[str]:
    return [f"**{escaped(cell)}**" if bold and cell.strip() else escaped(cell) for cell in cells]


def _grid(headings: Sequence[str], numbers: Sequence[bool], rows: Iterable[Sequence[str]]) -> str:
    """A table whose columns are as wide as their cells, so that it can be read as it is too."""
    lines = [headings, *rows]
    widths = [max(3, *(len(line[index]) for line in lines)) for index in range(len(headings))]

    def line_of(cells: Sequence[str]) -> str:
        places = zip(cells, widths, numbers, strict=True)
        return f"| {' | '.join(cell.rjust(width) if number else cell.ljust(width) for cell, width, number in places)} |"

    rule = ["-" * (width - 1) + ":" if number else "-" * width for width, number in zip(widths, numbers, strict=True)]
    return "\n".join([line_of(headings), line_of(rule), *map(line_of, lines[1:])])
