"""Tables of one model: parameters, FLOPs, memory, a training step, its ranks, the GPUs it fits, and its time there."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from counting.analysis import Analysis
from counting.report.format import integer, length_source
from counting.report.tables import print_notes, print_rich, print_tables

if TYPE_CHECKING:
    from rich.table import Table

    from counting.step.fit import Fit
from counting.report.model.fits import fits_table
from counting.report.model.flops import flop_table
from counting.report.model.layer_memory import layer_memory_table
from counting.report.model.parameters import parameter_table
from counting.report.model.reserved import reserved_tables
from counting.report.model.step_flops import step_flops_table
from counting.report.model.step_memory import step_memory_table
from counting.report.model.step_time import time_notes, time_table


def print_analysis(analysis: Analysis, fits: "Sequence[Fit]" = ()) -> None:
    """Print all tables of one model; the table of GPUs has a row for each entry of `fits`."""
    print_rich("", _heading(analysis))
    print_tables(
        parameter_table(analysis),
        flop_table(analysis),
        *([layer_memory_table(analysis)] if analysis.main_layer.peak_memory_parts else []),
        *([step_flops_table(analysis.training, analysis.setup)] if analysis.training else []),
        *([step_memory_table(analysis.memory, analysis.setup)] if analysis.memory else []),
        *(reserved_tables(analysis.memory) if analysis.memory else []),
        *_rank_tables(analysis),
        *([fits_table(fits, analysis.setup)] if fits else []),
        *([time_table(analysis.step_time)] if analysis.step_time else []),
    )
    lists = {
        "Not in the config, so set to family defaults": ", ".join(analysis.defaulted_fields),
        "Fields that are not understood, ignored on request": ", ".join(analysis.ignored_fields),
        "Fields that have no part in the model": "; ".join(analysis.passed_over_fields),
    }
    print_notes(
        [
            *analysis.notes,
            *time_notes(analysis.step_time or (), analysis.not_timed),
            *(f"{title}: {fields}." for title, fields in lists.items() if fields),
        ]
    )


def _rank_tables(analysis: Analysis) -> "Iterable[Table]":
    if analysis.rank_classes is None:
        return ()
    from counting.report.model.ranks import rank_tables

    return rank_tables(analysis)


def _heading(analysis: Analysis) -> str:
    """A line that describes the model, and the layer and setup of the plain lines."""
    from rich.markup import escape

    setup, main, total = analysis.setup, analysis.main_layer, sum(layer.count for layer in analysis.layers)
    text = (
        f"[bold]{escape(analysis.name)}[/bold] ({analysis.model_type}), {total} layers; the plain lines are for one "
        f"{main.kind} layer ({main.count} of {total}), batch {setup.micro_batch_size}, sequence length "
        f"{integer(analysis.sequence_length)} ({length_source(setup.sequence_length_source)}), {setup.kernels} kernels."
    )
    return f"{text} Measured, no formula." if analysis.proof == "measured, no formula" else text
