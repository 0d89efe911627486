"""A training step that is spread over ranks, on the first screen: does it fit, and what does the worst rank hold."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from counting.cost.fits import worst_rank
from counting.ranks.result import worst_by_place
from counting.report.format import Bytes, integer, numbered, recompute_in_words
from counting.report.layout import axes_in_words, ranks_in_words, routing_in_words, stages_in_words
from counting.report.screen.fits import fit_rows, fits_in_words, needs_fact, reserved_fact
from counting.report.screen.lines import Lines
from counting.report.screen.time import time_rows
from counting.step.memory import TAKES_LONG_NOTE
from counting.step.phase import PARTS, Phase
from torch_models.layout import Layout

if TYPE_CHECKING:
    from counting.analysis import Analysis
    from counting.ranks.result import RankAnalysis
    from counting.step.fit import Fit

MOST_PEAKS, FEW_PEAKS = 16, 4  # of the ranks of a pipeline, with notes and without

ESTIMATE = (
    "by formula, of what a rank holds by Megatron-LM's rules; nothing is measured, and what a pass makes and lets go "
    "is not counted"
)
PART_NAMES = {  # where the name is not that of the field
    "optimizer_state": "optimiser",
    "gathered_parameters": "gathered",
    "communication_buffers": "communication",
    "logits_and_loss": "logits and loss",
}


def ranks_screen(
    lines: Lines,
    analysis: "Analysis",
    on_catalogue: "Sequence[Fit]",
    most: int,
    *,
    times: int,
    remedies: bool,
    reserved: bool = True,
    parts: bool = True,
    settings: bool = True,
) -> None:
    """Add whether the step fits each of the first `most` GPUs, how long it takes, and the worst rank with its peak.

    How long is of the first `times` GPUs, with `remedies` what to give where that is not known. With `reserved` also
    what the allocator reserves for it, where that is estimated, with `parts` what the peak is made of, and with
    `settings` the layout and what the step is run with.
    """
    layout, worst, fits = analysis.layout, worst_rank(analysis), analysis.fits or ()
    assert layout is not None and worst is not None
    number = numbered(layout.ranks, "GPU")
    if fits:
        lines.heading(f"Does a training step of {analysis.name} fit, spread over {number}? In GiB:")
        fit_rows(lines, analysis, fits, most)
    else:
        lines.heading(f"A training step of {analysis.name}, spread over {number}")
        if on_catalogue:
            lines.fact("fits", fits_in_words(on_catalogue, analysis))
    time_rows(lines, analysis, times, remedies=remedies)
    lines.fact("the worst rank", _worst(worst, layout, analysis))
    (peak,) = (phase for phase in worst.memory.phases if phase.name == worst.memory.peak_phase)
    if parts:
        lines.fact("  at its peak", _parts(peak))
    if reserved:
        reserved_fact(lines, "  reserved", worst.memory)
    if not fits and TAKES_LONG_NOTE in worst.memory.notes:  # else it stands with what the step needs
        lines.fact("  reserved", "left out: the estimate takes long here")
    if layout.pp > 1:
        lines.fact("  it has", f"{stages_in_words(layout, worst.stages)}; {_in_flight(worst)}")
        lines.fact("  peaks by rank", _peaks(analysis.rank_classes or (), MOST_PEAKS if lines.notes else FEW_PEAKS))
    if settings:
        lines.fact("layout", axes_in_words(layout))
        lines.fact("run with", _setup(analysis, layout))
    if layout.framework == "torch":
        of_which = "of this rank: " if layout.pp > 1 else ""
        lines.note("collectives", f"{of_which}{_traffic(worst)}")
    else:
        lines.fact("an estimate", ESTIMATE)
    if fits and settings:
        needs_fact(lines, fits, worst.memory)


def rank_in_short(analysis: "Analysis") -> str:
    """The peak of the worst rank."""
    worst, layout = worst_rank(analysis), analysis.layout
    assert worst is not None and layout is not None
    peak = worst.memory.peak_bytes
    ranks = "the only rank" if layout.ranks == 1 else f"the worst of {integer(layout.ranks)} ranks"
    return f"{ranks} {Bytes(peak)(peak)}"


def _worst(worst: "RankAnalysis", layout: Layout, analysis: "Analysis") -> str:
    memory = worst.memory
    (peak,) = (phase for phase in memory.phases if phase.name == memory.peak_phase)
    layer = "" if peak.layer is None else f"layer {peak.layer}"
    place = peak.name.replace("a layer", layer) if "a layer" in peak.name else f"{peak.name}{', ' * bool(layer)}{layer}"
    if peak.micro_batch is not None and analysis.setup.micro_batches != 1:
        place += f", micro-batch {peak.micro_batch}"
    return f"{Bytes(memory.peak_bytes)(memory.peak_bytes)}, {ranks_in_words(worst, layout)}, in the {place}"


def _parts(peak: Phase) -> str:
    size = Bytes(peak.peak_bytes)
    sizes = {part: getattr(peak, part) for part in PARTS}
    return ", ".join(f"{PART_NAMES.get(part, part)} {size.number(value)}" for part, value in sizes.items() if value)


def _in_flight(ranks: "RankAnalysis") -> str:
    return f"{integer(ranks.in_flight)} pass{'' if ranks.in_flight == 1 else 'es'} in flight"


def _peaks(classes: "Sequence[RankAnalysis]", most: int) -> str:
    """The peak of each rank of the pipeline; of more than `most`, those of the first ones and of the last."""
    peaks = [each.memory.peak_bytes for each in worst_by_place(classes)]
    size = Bytes(max(peaks))
    shown = [f"{place}: {size.number(peak)}" for place, peak in enumerate(peaks)]
    if len(shown) > most:
        shown = [*shown[: most - 1], f"… {shown[-1]}"]
    return f"of pp, in {size.unit}: {', '.join(shown)}"


def _setup(analysis: "Analysis", layout: Layout) -> str:
    """The settings of the step on which its memory depends most, defaults included."""
    setup = analysis.setup
    number, several = integer(setup.micro_batches or 1), "" if setup.micro_batches == 1 else "es"
    batches = f"{number} micro-batch{several} of " if several or layout.pp > 1 else ""
    length = analysis.sequence_length
    of_each = "a rank" if layout.cp == 1 else f"for each group of cp, {integer(length // layout.cp)} of each a rank"
    sequences = f"{batches}{integer(setup.micro_batch_size)} x {integer(length)} tokens {of_each}"
    parts = [setup.precision, setup.optimizer, sequences, f"recompute {recompute_in_words(setup.recompute)}"]
    if setup.execution == "compiled":
        parts.append("compiled layers")
    if setup.loss_chunk is not None:
        parts.append(f"loss chunk {integer(setup.loss_chunk)}")
    if setup.clip_gradients:
        parts.append("clipped gradients")
    if setup.mtp:
        parts.append("multi-token prediction")
    return ", ".join([*parts, *routing_in_words(analysis, layout)])


def _traffic(worst: "RankAnalysis") -> str:
    """The larger side of each collective over each axis and its calls in a step, forward and backward together."""
    totals: dict[tuple[str, str], tuple[int, int]] = {}
    for each in worst.collectives:
        size, calls = totals.get((each.op, each.axis), (0, 0))
        totals[each.op, each.axis] = (size + max(each.bytes_in, each.bytes_out), calls + each.count)
    largest = max((size for size, _ in totals.values()), default=0)
    shown = Bytes(largest)
    return (
        "; ".join(
            f"{op.replace('_', '-')} over {axis} {shown(size)} in {integer(calls)} call{'' if calls == 1 else 's'}"
            for (op, axis), (size, calls) in totals.items()
        )
        or "none: the rank is alone"
    )
