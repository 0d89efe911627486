"""Tables of scaling laws: the one that is followed, what a wrong choice costs, and all of them side by side."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from counting.cost.scaling_laws import Interval, ScalingLaw
from counting.cost.scaling_laws.law import CONSTANTS
from counting.cost.scaling_laws.wrong_choice import LawsApart
from counting.report.format import NONE, Number, decimal, integer, percent, scientific
from counting.report.tables import Notes, Part, facts_table, rows_table

if TYPE_CHECKING:
    from counting.cost.scaling_laws.side_by_side import LawRow, LawsSideBySide

SYMBOLS = dict(zip(CONSTANTS, ("E", "A", "B", "alpha", "beta"), strict=True))
IN_WORDS = {
    "non_embedding_parameters": "parameters without embeddings",
    "non_embedding_flops_per_token": "FLOPs a token without embeddings",
    "tokens": "tokens",
}


def law_parts(law: ScalingLaw) -> Iterator[Part]:
    """The constants of the law that the budget follows, with their intervals, and what it was fitted to."""
    table = rows_table(f"The scaling law {law.name}, L = E + A / N^alpha + B / D^beta", ("constant", "value", "95 %"))
    for field, symbol in SYMBOLS.items():
        constant = getattr(law, field)
        known = constant.low is not None
        table.add_row(
            f"{symbol}, {field}",
            Number(f"{constant.value:.7g}", constant.value),
            f"{constant.low:.5g} to {constant.high:.5g}" if known else NONE,
        )
    yield table
    facts = [
        ("Source", law.source),
        *([] if law.method is None else [("Method", law.method)]),
        *([] if law.runs is None else [("Runs", integer(law.runs))]),
        ("Draws of the bootstrap", integer(len(law.bootstrap)) if law.bootstrap else f"{NONE}, so no intervals"),
        ("Fitted to N", f"{law.fitted_parameters[0]:.4g} to {law.fitted_parameters[1]:.4g}"),
        ("Fitted to D", f"{law.fitted_tokens[0]:.4g} to {law.fitted_tokens[1]:.4g}"),
    ]
    yield facts_table(f"What {law.name} rests on", facts)


def apart_parts(apart: LawsApart) -> Iterator[Part]:
    """Each law with a loss against each: what is lost by following the one while the other holds."""
    names = [optimum.law for optimum in apart.optima]
    table = rows_table("A wrong choice: nats lost, and share of C", ("followed", *(f"{name} holds" for name in names)))
    costs = {(choice.followed, choice.holds): choice for choice in apart.wrong_choices}
    for followed in names:
        found = [costs.get((followed, holds)) for holds in names]
        table.add_row(
            followed,
            *(NONE if one is None else f"{one.excess_loss:.4f}, {percent(one.wasted_compute, 1)}" for one in found),
        )
    yield table
    note = (
        "Nats: L(N, D) at the optimum of the law that is followed, less L at its own optimum, both by the law that "
        "holds, at the same C = 6 N D. Share of C: what its own optimum would save at the same loss."
    )
    yield Notes((note,))


def side_by_side_parts(laws: "LawsSideBySide") -> Iterator[Part]:
    """N, D and loss by each law, what each calls N and C, and how that is converted."""
    headings = ("law", "parameters", "tokens", "tokens per N", "loss", "nats lost", "of C", "")
    table = rows_table(f"Laws side by side, {laws.training_flops:.4g} FLOPs", headings)
    for row in laws.rows:
        table.add_row(
            row.law,
            integer(row.parameters),
            integer(row.tokens),
            decimal(row.tokens_per_parameter, 2),
            NONE if row.predicted_loss is None else decimal(row.predicted_loss, 5),
            decimal(row.excess_loss, 5),
            percent(row.wasted_compute),
            "extrapolated" if row.extrapolated else "",
        )
    yield table
    if any(row.intervals is not None for row in laws.rows):
        intervals = rows_table("95 % intervals", ("law", "parameters", "tokens", "tokens per N", "loss"), names=1)
        for row in laws.rows:
            if row.intervals is not None:
                found = row.intervals
                counts = [count_range(one) for one in (found.parameters, found.tokens)]
                ratio = f"{found.tokens_per_parameter.low:.4g} to {found.tokens_per_parameter.high:.4g}"
                intervals.add_row(row.law, *counts, ratio, loss_range(found.loss))
        yield intervals
    yield facts_table("What each law calls N and C, and how that is converted", [_meaning(row) for row in laws.rows])
    yield Notes(
        (
            f"In the table, N are all parameters and C = 6 N D for every law. Nats and share of C are lost if "
            f"{laws.followed} holds. Losses of different laws are on different data and tokens: compare N and D.",
        )
    )


def count_range(interval: Interval) -> str:
    """A 95 % interval of parameters or tokens."""
    return f"{scientific(interval.low)} to {scientific(interval.high)}"


def loss_range(interval: Interval) -> str:
    """A 95 % interval of a loss."""
    return f"{interval.low:.5f} to {interval.high:.5f}"


def _meaning(row: "LawRow") -> tuple[str, str]:
    """What a law calls N and C, and by which model's shape they are converted."""
    text = f"N: {row.parameters_mean}; C: {row.compute_means}"
    if row.gives != "loss" and row.quantity is not None:
        text += f"; says {row.quantity:.4g} {IN_WORDS[row.gives]}"
    shape = row.converted_by
    if shape is not None:
        designed = "a model designed for it, " if shape.designed else ""
        text += (
            f"; converted by the shape of {designed}{shape.model}: {shape.non_embedding_parameters:,} of "
            f"{shape.parameters:,} parameters, {shape.sequence_length:,} tokens"
        )
    return row.law, f"{text}. {row.source}"
