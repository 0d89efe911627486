"""Lists of all numbers with the values of their witnesses, one list for each set of witnesses.

Witnesses that differ raise an error before anything is printed, so all values of a number are equal. If the line is too
narrow for all of them, only one value is printed.
"""

import textwrap
from collections.abc import Iterator, Sequence

from counting.reconcile import Agreement, Check
from counting.report.format import integer
from counting.report.width import output_width

MARGIN, EQUALS = "  ", " = "
WORKED_OUT = ("formula", "simulation")  # the witnesses that are computed, not measured
# What is said first where not all numbers have a formula, by the analysis's `proof`.
MEASURED_IN_WORDS = {
    "measured, no formula": "Measured, no formula",
    "measured; scans by formula": "Measured; products of scans by formula alone",
}
STORED = "checkpoint"  # the witness that knows only sums over the model


def print_proof(agreement: Agreement, name: str) -> None:
    """Print the numbers of the model `name` that have several witnesses, then those that have one."""
    width = output_width()
    print("\n" + textwrap.fill(f"{name}: {proof_in_words(agreement)}", width, break_on_hyphens=False))
    print(f"\n{proof_text(agreement, width)}")


def proof_text(agreement: Agreement, width: int) -> str:
    """The lists of numbers, first those that have several witnesses, in lines of at most `width` columns."""
    by_witnesses: dict[tuple[str, ...], list[Check]] = {}
    for check in agreement.checks:
        by_witnesses.setdefault(tuple(check.values), []).append(check)
    lists = sorted(by_witnesses.items(), key=lambda entry: len(entry[0]) == 1)
    return "\n\n".join(
        "\n".join([f"{_numbers(checks)}{_title(witnesses)}", *_rows(checks, width)]) for witnesses, checks in lists
    )


def proof_in_words(agreement: Agreement) -> str:
    """How many numbers are proven and by which witnesses, and how many have only one witness."""
    proven = [check for check in agreement.checks if check.proven and STORED not in check.values]
    stored = [check for check in agreement.checks if check.proven and STORED in check.values]
    alone: dict[str, list[Check]] = {}
    for check in agreement.checks:
        if not check.proven:
            alone.setdefault(_title(tuple(check.values)), []).append(check)
    by_checkpoint = [f"{len(stored)}{_title(tuple(stored[0].values))}"] if stored else []
    alone_by = [f"{len(checks)}{by}" for by, checks in alone.items()]
    return ", ".join([_heading(agreement, proven), *by_checkpoint, *alone_by])


def _heading(agreement: Agreement, proven: Sequence[Check]) -> str:
    """How many numbers are proven, and by which witnesses."""
    worked_out = [name for name in WORKED_OUT if any(name in check.values for check in proven)]
    if worked_out:
        return f"{_numbers(proven)}: measured = {' or '.join(worked_out)}"
    measured = [name for name in agreement.witnesses if any(name in check.values for check in proven)]
    return f"{_numbers(proven)}: {' = '.join(measured)}"


def _numbers(checks: Sequence[Check]) -> str:
    return f"{len(checks)} number{'' if len(checks) == 1 else 's'}"


def _rows(checks: Sequence[Check], width: int) -> Iterator[str]:
    """A row for each number, below its scope and quantity; with the values of all witnesses if they fit in `width`."""
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
    """The names of the witnesses, in words that follow the number of checks."""
    if len(witnesses) > 1:
        return f": {' = '.join(witnesses)}"
    return " by recipe" if witnesses[0] == "recipe" else f" by {witnesses[0]} alone"
