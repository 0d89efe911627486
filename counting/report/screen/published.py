"""Published runs on the first screen: the MFU that their hours imply, and how far our figures are from theirs."""

from collections.abc import Sequence

from counting.published.memory import ExaminedMemory
from counting.published.runs import ExaminedRun
from counting.published.throughput import ExaminedRatio, Throughput
from counting.records.conventions import FLOP_CONVENTIONS
from counting.report.format import signed_percent
from counting.report.published.memory import MEMORY_HEADINGS, memory_cells
from counting.report.published.throughput import (
    ERROR_HEADINGS,
    SPEED_HEADINGS,
    WHAT_IT_IS,
    error_cells,
    kind_of_errors,
    speed_cells,
)
from counting.report.screen.lines import Lines

HEADINGS_OF_RUNS = ("run", "GPU", "6 N", "full", "causal", "own", "figures", "apart")


def published_screen(lines: Lines, runs: Sequence[ExaminedRun]) -> None:
    """Add a row for each run."""
    figures = sum(len(run.figures) for run in runs)
    lines.heading(f"{len(runs)} published runs: the MFU in % that hours imply, and {figures} figures stated")
    lines.columns([HEADINGS_OF_RUNS, *map(_row_of_run, runs)], names=2)
    lines.text(
        "MFU of the dense 16-bit peak. 6 N: of active parameters; full, causal: 6 N' with attention's square, or half "
        "of it; own: the model's own count. Figures: how many the paper states, and by how much ours differ at most. "
        "The details have each with its source."
    )


def _row_of_run(run: ExaminedRun) -> tuple[str, ...]:
    mfu: dict[str, str] = {entry.convention: f"{100 * entry.mfu:.1f}" for entry in run.implied_mfu}
    largest = max((figure.relative_difference for figure in run.figures), key=abs, default=None)
    return (
        run.name,
        run.gpu or "",
        *(mfu.get(convention, "") for convention in FLOP_CONVENTIONS),
        str(len(run.figures) or ""),
        "" if largest is None else f"{100 * largest:+.2f} %",
    )


def published_memory_screen(lines: Lines, rows: Sequence[ExaminedMemory]) -> None:
    """Add a row for each figure that is compared."""
    figures = [(row, figure) for row in rows for figure in row.figures]
    lines.heading(
        f"{len(figures)} published peaks of memory a GPU, and what is predicted for the same settings, in GiB"
    )
    body = [(row.name, row.gpu, figure.quantity, *memory_cells(figure)) for row, figure in figures]
    lines.columns([("run", "GPU", "bytes", *MEMORY_HEADINGS), *body], names=3)
    not_run = sum(not row.figures for row in rows)
    lines.text(
        "Reserved is an estimate, least and most over orders of addresses; nothing is fitted. "
        + (f"Not run: {not_run} rows; the details say why." if not_run else "")
    )


def published_throughput_screen(lines: Lines, throughput: Throughput) -> None:
    """Add a row for each step with a gate that is run, and what the errors of all come to."""
    run = [row for row in throughput.rows if row.step_time is not None]
    gated = [row for row in run if row.gate]
    lines.heading(f"{len(run)} published steps, and how long they are said to take: the {len(gated)} to be met")
    body = [(row.name, row.cluster.gpu, *speed_cells(row)) for row in gated]
    lines.columns([("run, seconds a step", "GPU", *SPEED_HEADINGS), *body], names=2)
    errors = [(kind_of_errors(found), str(found.rows), *error_cells(found)) for found in throughput.errors]
    lines.columns([("errors", *ERROR_HEADINGS), *errors], names=1)
    faster = [name for found in throughput.errors if found.kind == "all" for name in found.beyond_bound]
    lines.text(f"Faster than the bound: {', '.join(dict.fromkeys(faster)) or 'none'}. " + WHAT_IT_IS)
    lines.text("; ".join(_ratio(ratio) for ratio in throughput.ratios if ratio.gate))
    not_run = len(throughput.rows) - len(run)
    lines.text(f"The details have all rows, with sources, and why {not_run} more are not run.")


def _ratio(ratio: ExaminedRatio) -> str:
    return (
        f"{ratio.name}: {ratio.measured:.3f} measured, {ratio.estimated:.3f} estimated "
        f"({signed_percent(ratio.relative_error, 1)})"
    )
