"""Every number with its witnesses: a list for each set of witnesses that speak of the same numbers.

Witnesses that differ are an error before anything is printed: without room for all values, one stands for them.
"""

import textwrap
from collections.abc import Iterator, Sequence

from counting.reconcile import Agreement, Check
from counting.report.format import integer
from counting.report.tables import output_width

MARGIN, EQUALS = "  ", " = "
WORKED_OUT = ("formula", "simulation")  # the witnesses that measure nothing


def print_proof(agreement: Agreement, name: str) -> None:
    """The numbers of the model called `name` that several witnesses give, then those of one witness alone."""
    print("\n" + textwrap.fill(f"{name}: {proof_in_words(agreement)}", output_width(), break_on_hyphens=False))
    by_witnesses: dict[tuple[str, ...], list[Check]] = {}
    for check in agreement.checks:
        by_witnesses.setdefault(tuple(check.values), []).append(check)
    width = output_width()
    for witnesses, checks in sorted(by_witnesses.items(), key=lambda entry: len(entry[0]) == 1):
        print(f"\n{_numbers(checks)}{_title(witnesses)}")
        print("\n".join(_rows(checks, width)))


def proof_in_words(agreement: Agreement) -> str:
    """How many numbers are proven and by what, and how many rest on one witness."""
    proven = [check for check in agreement.checks if check.proven]
    alone: dict[str, list[Check]] = {}
    for check in agreement.checks:
        if not check.proven:
            alone.setdefault(_title(tuple(check.values)), []).append(check)
    return ", ".join([_heading(agreement, proven), *(f"{len(checks)}{by}" for by, checks in alone.items())])


def _heading(agreement: Agreement, proven: Sequence[Check]) -> str:
    """How many numbers are proven, and by what."""
    worked_out = [name for name in WORKED_OUT if any(name in check.values for check in proven)]
    if worked_out:
        return f"{_numbers(proven)}: measured = {' or '.join(worked_out)}"
    measured = [name for name in agreement.witnesses if any(name in check.values for check in proven)]
    return f"{_numbers(proven)}: {' = '.join(measured)}"


def _numbers(checks: Sequence[Check]) -> str:
    return f"{len(checks)} number{'' if len(checks) == 1 else 's'}"


def _rows(checks: Sequence[Check], width: int) -> Iterator[str]:
    """A row for each number, under whose it is and what it measures; every witness's value where they fit beside it."""
    component = max(len(check.component) for check in checks)
    digits = max(len(integer(value)) for check in checks for value in check.values.values())
    witnesses = len(checks[0].values)
    fits = len(MARGIN) * 2 + component + 2 + witnesses * digits + len(EQUALS) * (witnesses - 1) <= width
    place = None
    for check in checks:
        if place != (place := (check.scope, check.quantity)):
            yield f"{MARGIN}{check.scope}, {check.quantity}"
        values = [integer(value).rjust(digits) for value in check.values.values()]
        yield f"{MARGIN * 2}{check.component:{component}}  {EQUALS.join(values if fits else values[:1])}"


def _title(witnesses: Sequence[str]) -> str:
    """What these witnesses do for their numbers."""
    if len(witnesses) > 1:
        return f": {' = '.join(witnesses)}"
    return " by recipe" if witnesses[0] == "recipe" else f" by {witnesses[0]} alone"
