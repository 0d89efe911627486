"""The small table that a notebook shows of a result: the numbers of the whole first.

It stands here and not with the reports, because a notebook asks the result itself for it, and a result knows no report.
"""

from collections.abc import Sequence
from html import escape

from counting.records.record import TidyRow
from counting.records.walk import BETWEEN, TOTAL

MOST_ROWS = 24
SHOWN = ("scope", "component", "quantity", "value", "unit")


def html_table(title: str, rows: Sequence[TidyRow]) -> str:
    """A table in HTML of at most `MOST_ROWS` rows that are not 0: sums before components, the whole before its parts.

    The convention of a number is what the pointer shows over its row.
    """
    chosen = sorted((row for row in rows if row.value), key=_distance)[:MOST_ROWS]
    body = "".join(map(_html_row, chosen))
    left = len(rows) - len(chosen)
    caption = f"{title}: {left} more rows in to_records()" if left else title
    heading = "".join(f"<th>{column}</th>" for column in SHOWN)
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table>"


def _distance(row: TidyRow) -> tuple[bool, int]:
    """How far a number is from the whole result: as a component, then as a part."""
    return row.component not in ("", TOTAL), row.scope.count(BETWEEN)


def _html_row(row: TidyRow) -> str:
    words = [f"<td>{escape(word)}</td>" for word in (row.scope, row.component, row.quantity)]
    number = f'<td style="text-align: right">{_digits(row.value)}</td><td>{escape(row.unit)}</td>'
    return f'<tr title="{escape(row.convention)}">{"".join(words)}{number}</tr>'


def _digits(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.10g}"
