"""Every number with its witnesses: a table for each set of witnesses that speak of the same numbers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from counting.reconcile import Agreement, Check
from counting.report.format import integer, open_console, print_tables

if TYPE_CHECKING:
    from rich.table import Table

WORKED_OUT = ("formula", "simulation")  # the witnesses that measure nothing


def print_proof(agreement: Agreement) -> None:
    """The numbers that several witnesses give, then those of one witness alone."""
    proven = [check for check in agreement.checks if check.proven]
    open_console().print(f"\n{_heading(agreement, proven)}", style="italic")
    print_tables(*proof_tables(agreement))


def proof_tables(agreement: Agreement) -> list["Table"]:
    """A table for each set of witnesses; what is proven comes first."""
    by_witnesses: dict[tuple[str, ...], list[Check]] = {}
    for check in agreement.checks:
        by_witnesses.setdefault(tuple(check.values), []).append(check)
    widths = [
        max((len(getattr(check, field)) for check in agreement.checks), default=0)
        for field in ("scope", "quantity", "component")
    ]
    return [
        _table(witnesses, checks, widths)
        for witnesses, checks in sorted(by_witnesses.items(), key=lambda entry: len(entry[0]) == 1)
    ]


def _heading(agreement: Agreement, proven: Sequence[Check]) -> str:
    """How many numbers are proven, and by what."""
    worked_out = [name for name in WORKED_OUT if any(name in check.values for check in proven)]
    if worked_out:
        return f"{_numbers(proven)}, each measured = {' or '.join(worked_out)}"
    measured = [name for name in agreement.witnesses if any(name in check.values for check in proven)]
    return f"{_numbers(proven)}, each {' = '.join(measured)}"


def _numbers(checks: Sequence[Check]) -> str:
    return f"{len(checks)} number{'' if len(checks) == 1 else 's'}"


def _table(witnesses: Sequence[str], checks: Sequence[Check], widths: Sequence[int]) -> "Table":
    from rich.table import Table

    table = Table(title=f"{_numbers(checks)}{_title(witnesses)}", title_justify="left", box=None, header_style="dim")
    for heading, width in zip(("scope", "quantity", "component"), widths, strict=True):
        table.add_column(heading, no_wrap=True, min_width=width)
    for index, witness in enumerate(witnesses):
        if index:
            table.add_column("", no_wrap=True)
        table.add_column(witness, justify="right", no_wrap=True)
    for check in checks:
        cells: list[str] = []
        for value in check.values.values():
            cells += ["=", integer(value)] if cells else [integer(value)]
        table.add_row(check.scope, check.quantity, check.component, *cells, style="dim")
    return table


def _title(witnesses: Sequence[str]) -> str:
    """What these witnesses do for their numbers."""
    if len(witnesses) > 1:
        return f": {' = '.join(witnesses)}"
    return " by recipe" if witnesses[0] == "recipe" else f" by {witnesses[0]} alone"
