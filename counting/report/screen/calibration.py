"""The first screen of `calibrate`: the scale and its rows, or the rates of a machine."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from counting.report.format import integer, percent, readable, three_digits
from counting.report.results import Calibrated
from counting.report.screen.lines import Lines, listed
from counting.report.width import output_width

if TYPE_CHECKING:
    from counting.calibration.found import FoundAttention, FoundLink, FoundMachine
    from counting.calibration.steps import CalibratedCluster

_MOST_ROWS_SHOWN = 18  # of a table, so that all fits a screen of 30 lines
_FLOP_RATES = ((12, "TFLOP/s"), (9, "GFLOP/s"), (6, "MFLOP/s"))


def calibration_text(calibrated: Calibrated) -> str:
    """The screen."""
    lines = Lines(output_width())
    if calibrated.steps is not None:
        _steps(lines, calibrated.steps)
    if calibrated.machine is not None:
        _machine(lines, calibrated.machine)
    lines.fact("written", calibrated.output)
    if calibrated.left_out:
        lines.fact("left out", f"{listed(calibrated.left_out)} of the file before, which belong to other rates")
    return "\n".join(lines.lines)


def _steps(lines: Lines, steps: "CalibratedCluster") -> None:
    """The scale, its error, and the rows; of many, those that are predicted worst."""
    fitted = steps.calibration
    lines.heading(f"A step on {steps.gpu} takes {fitted.scale:.3f} × its estimate, by {fitted.rows} measured steps")
    errors = [row.seconds.error for row in steps.rows]
    lines.fact(
        "error",
        f"{min(errors):+.1%} to {max(errors):+.1%}, median {steps.median_error:.1%}: each row as the scale of the "
        "others predicts it (leave one out)",
    )
    lines.fact("scale", "geometric mean of measured / estimated")
    if steps.rates_of != steps.gpu:
        lines.fact("rates", f"of {steps.rates_of}, scaled by the peaks: the catalogue has none of {steps.gpu}")
    shown = sorted(steps.rows, key=lambda row: -abs(row.seconds.error))[:_MOST_ROWS_SHOWN]
    table: list[tuple[str, ...]] = [("row", "model", "GPUs", "bound", "estimated", "measured", "predicted", "error")]
    for row in (row for row in steps.rows if row in shown):
        of = row.seconds
        seconds = (row.bound_seconds, of.estimated_seconds, of.measured_seconds, of.predicted_seconds)
        number = row.where.rpartition("row ")[2].partition(" ")[0]
        table.append((number, row.model, integer(row.gpus), *map(_seconds, seconds), f"{of.error:+.1%}"))
    lines.columns(table, names=2)
    if len(steps.rows) > len(shown):
        lines.text(f"the {len(shown)} rows of the largest errors; the JSON document has all {len(steps.rows)}")


def _machine(lines: Lines, machine: "FoundMachine") -> None:
    """The rates of one device, and of its links."""
    threads = f", {machine.threads} thread{'s' * (machine.threads > 1)}" if machine.device == "cpu" else ""
    lines.heading(f"{machine.device_name}{threads}: what it achieves")
    for label, dtype, found in (
        ("products", machine.dtype, machine.products),
        ("", "float32", machine.fp32_products),
    ):
        lines.fact(
            label, f"{dtype}: best {_flops(found.best_tflop_per_s)}, sustained {_flops(found.sustained_tflop_per_s)}"
        )
    lines.fact(
        "experts",
        ", ".join(f"{_flops(row.tflop_per_s)} at {integer(row.tokens_per_expert)} tokens" for row in machine.grouped),
    )
    _attention(lines, machine.attention)
    found_bytes = machine.bytes
    lines.fact(
        "bytes",
        f"{three_digits(found_bytes.sustained_gb_per_s)} GB/s of ops in a row beyond the caches, best "
        f"{three_digits(found_bytes.best_gb_per_s)}; "
        + ", ".join(f"{name} {three_digits(rate)}" for name, rate in found_bytes.by_op.items()),
    )
    lines.fact("launch", f"{three_digits(1e6 * machine.launch_seconds)} µs")
    for link in machine.links:
        lines.fact("in a node" if link.nodes == 1 else "across nodes", _link(link))
    if machine.beside_collectives_share is not None:
        lines.fact(
            "beside", f"collectives, products keep {percent(machine.beside_collectives_share, 0)} of their speed"
        )
    if machine.spread is not None:
        lines.fact("spread", f"{percent(machine.spread, 1)}, the standard deviation of the ranks' products")


def _attention(lines: Lines, rows: Sequence["FoundAttention"]) -> None:
    """A line for each kernel and head size; lengths at both ends."""
    for kernel, head_size in dict.fromkeys((row.kernel, row.head_size) for row in rows):
        of = [row for row in rows if (row.kernel, row.head_size) == (kernel, head_size)]
        rates = {
            "forward": [_flops(row.forward_tflop_per_s) for row in (of[0], of[-1])],
            "backward": [_flops(row.backward_tflop_per_s) for row in (of[0], of[-1])],
        }
        ends = [integer(row.sequence_length) for row in (of[0], of[-1])]
        both = ", ".join(f"{way} {_from_to(*found)}" for way, found in rates.items())
        lines.fact("attention", f"{kernel}, heads of {head_size}, {_from_to(*ends)} tokens: {both}")


def _from_to(first: str, last: str) -> str:
    return first if first == last else f"{first} to {last}"


def _link(link: "FoundLink") -> str:
    by_op = ", ".join(f"{op.replace('_', '-')} {three_digits(rate)}" for op, rate in link.by_op.items())
    return (
        f"{three_digits(link.achieved_gb_per_s)} GB/s of each of {link.ranks} ranks, the shortest call "
        f"{three_digits(1e6 * link.shortest_seconds)} µs; {by_op}"
    )


def _flops(tflop_per_s: float) -> str:
    return readable(1e12 * tflop_per_s, _FLOP_RATES)


def _seconds(seconds: float) -> str:
    """Seconds with three digits; milliseconds below a tenth."""
    return f"{three_digits(seconds)} s" if seconds >= 0.1 else f"{three_digits(1e3 * seconds)} ms"
