"""Scaling laws on the first screen: how far they are apart, what a wrong choice costs, and all of them side by side."""

from typing import TYPE_CHECKING

from counting.cost.scaling_laws import Interval
from counting.cost.scaling_laws.wrong_choice import LawsApart
from counting.report.format import NONE, readable, readable_range, short_percent, three_digits
from counting.report.screen.lines import Lines, listed

if TYPE_CHECKING:
    from counting.cost.scaling_laws.side_by_side import LawsSideBySide


def apart_screen(lines: Lines, apart: LawsApart, *, more: bool = False, costs: bool = True) -> None:
    """Add how far the laws with a loss are apart, and what following the budget's costs where another one holds.

    `more` says that a table of all was asked for, and is in the details; without `costs` only how far they are apart.
    """
    fewest, most, costliest = apart.fewest_tokens_per_parameter, apart.most_tokens_per_parameter, apart.costliest
    add = lines.fact if more else lines.note
    wrong = (
        f"; if {costliest.holds} holds, this choice costs {costliest.excess_loss:.4f} nats, "
        f"{short_percent(round(costliest.wasted_compute, 3))} of the FLOPs"
    )
    ratios = readable_range(fewest.tokens_per_parameter, most.tokens_per_parameter)
    if costs:
        add("laws apart", f"{ratios} tokens per parameter{wrong}{'; all are in the details' * more}")
    else:
        add("laws apart", f"{ratios} tokens per N{'; all in the details' * more}")


def laws_screen(lines: Lines, laws: "LawsSideBySide") -> None:
    """Add a table of all laws; N are all parameters and C = 6 N D for each of them."""
    rows = [("law", "parameters", "tokens", "per N", "loss", "costs", "of C")]
    for row in laws.rows:
        followed = row.law == laws.followed
        rows.append(
            (
                row.law,
                readable(row.parameters),
                readable(row.tokens),
                three_digits(row.tokens_per_parameter),
                NONE if row.predicted_loss is None else f"{row.predicted_loss:.3f}",
                "" if followed else f"{row.excess_loss:.4f}",
                "" if followed else short_percent(round(row.wasted_compute, 3)),
            )
        )
    lines.columns(rows)
    without = any(row.predicted_loss is None for row in laws.rows)
    if lines.narrow:
        none = f"; {NONE}: only N or D" if without else ""
        lines.text(f"costs if {laws.followed} holds: nats, share of C{none}")
    else:
        none = f"; {NONE}: it says only N or D" if without else ""
        lines.text(f"costs: nats, and share of C, lost if {laws.followed} holds{none}")
    if lines.notes:
        _conversion(lines, laws)


def _conversion(lines: Lines, laws: "LawsSideBySide") -> None:
    """Add by what shape laws that leave embeddings out, or count attention, are converted."""
    converted = [(row.law, row.converted_by) for row in laws.rows if row.converted_by is not None]
    if converted:
        names = listed([law for law, _ in converted])
        shapes = [shape for _, shape in converted]
        by = "models designed for them" if shapes[0].designed else shapes[0].model
        lines.text(f"N is all parameters, C is 6 N D; {names} converted by the shape of {by}")


def with_interval(shown: str, interval: Interval | None) -> str:
    """The number, and behind it its 95 % interval in brackets, if there is one; of counts."""
    return shown if interval is None else f"{shown} ({readable_range(interval.low, interval.high)})"


def loss_with_interval(loss: float, interval: Interval | None) -> str:
    """1.897, or 1.897 (1.88-1.91)."""
    return f"{loss:.3f}" if interval is None else f"{loss:.3f} ({interval.low:.3f}\N{EN DASH}{interval.high:.3f})"
