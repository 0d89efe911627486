"""Tables of one model: parameters, FLOPs, memory, a training step, its ranks, the GPUs it fits, and its time there."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from counting.analysis import Analysis
from counting.report.format import integer, length_source
from counting.report.tables import Heading, Notes, Part, Table

if TYPE_CHECKING:
    from counting.step.fit import Fit
from counting.report.model.fits import fits_table
from counting.report.model.flops import flop_table
from counting.report.model.layer_memory import layer_memory_table
from counting.report.model.parameters import parameter_table
from counting.report.model.proof import MEASURED_IN_WORDS
from counting.report.model.reserved import reserved_tables
from counting.report.model.step_flops import step_flops_table
from counting.report.model.step_memory import step_memory_table
from counting.report.model.step_time import time_notes, time_table


def analysis_parts(analysis: Analysis, fits: "Sequence[Fit]" = ()) -> Iterator[Part]:
    """All tables of one model; the table of GPUs has a row for each entry of `fits`."""
    yield _heading(analysis)
    yield parameter_table(analysis)
    yield flop_table(analysis)
    if analysis.main_layer.peak_memory_parts:
        yield layer_memory_table(analysis)
    if analysis.training:
        yield step_flops_table(analysis.training, analysis.setup)
    if analysis.memory:
        yield step_memory_table(analysis.memory, analysis.setup)
        yield from reserved_tables(analysis.memory)
    yield from _rank_tables(analysis)
    if fits:
        yield fits_table(fits, analysis.setup, analysis.proof)
    if analysis.step_time:
        yield time_table(analysis.step_time)
    lists = {
        "Not in the config, so set to family defaults": ", ".join(analysis.defaulted_fields),
        "Fields that are not understood, ignored on request": ", ".join(analysis.ignored_fields),
        "Fields that have no part in the model": "; ".join(analysis.passed_over_fields),
    }
    of_lists = [f"{title}: {fields}." for title, fields in lists.items() if fields]
    yield Notes((*analysis.notes, *time_notes(analysis.step_time or (), analysis.not_timed), *of_lists))


def _rank_tables(analysis: Analysis) -> Iterable[Table]:
    if analysis.rank_classes is None:
        return ()
    from counting.report.model.ranks import rank_tables

    return rank_tables(analysis)


def _heading(analysis: Analysis) -> Heading:
    """The model, and the layer and setup of the plain lines."""
    setup, main, total = analysis.setup, analysis.main_layer, sum(layer.count for layer in analysis.layers)
    text = (
        f"({analysis.model_type}), {total} layers; the plain lines are for one "
        f"{main.kind} layer ({main.count} of {total}), batch {setup.micro_batch_size}, sequence length "
        f"{integer(analysis.sequence_length)} ({length_source(setup.sequence_length_source)}), {setup.kernels} kernels."
    )
    said = MEASURED_IN_WORDS.get(analysis.proof)
    return Heading(analysis.name, f"{text} {said}." if said else text)
