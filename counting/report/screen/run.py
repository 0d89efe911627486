"""A training run on the first screen: hours, days and dollars on each kind of GPU, and their assumptions."""

from collections.abc import Sequence

from counting.cost.conventions import FEWEST_FLOPS
from counting.cost.run import MFU_RANGE, GpuRun, TrainingRun
from counting.records.conventions import FLOP_CONVENTIONS
from counting.report.conventions import what_states_leave_out
from counting.report.details.run import is_above_the_peak
from counting.report.format import (
    FLOP_UNITS,
    NONE,
    Bytes,
    integer,
    numbered,
    percent,
    readable,
    readable_range,
    scientific,
    short_percent,
)
from counting.report.screen.lines import Lines, listed

LEFT_OUT = "failed runs, evaluation, storage and people"
HEADINGS = ("GPU", "MFU", "$/hour", "GPU-hours", "days", "cost")


def run_screen(lines: Lines, runs: Sequence[TrainingRun], most: int, *, bands: bool = True) -> None:
    """Add the runs of one plan: a table with the first `most` GPUs of each run, then FLOPs, GPUs and assumptions.

    With `bands` also what the ends of the band of a predicted step make of hours and dollars.
    """
    first, several = runs[0], len(runs) > 1
    num_gpus = first.gpus[0].num_gpus
    gpus = "" if num_gpus is None else f" with {numbered(num_gpus, 'GPU')}"
    what = "each model" if several else first.model
    # Of one model on one kind of GPU, what is predicted stands in the heading.
    predicted = any(map(_is_predicted, [gpu for run in runs for gpu in run.gpus]))
    in_table = predicted and (several or len(first.gpus) > 1)
    utilisation = " at the MFU predicted for each" if in_table else _at_utilisation(first)
    lines.heading(f"Training {what} on {readable(first.tokens)} tokens{gpus}{utilisation}")
    rows: list[tuple[str, ...]] = [("model", *HEADINGS)]
    for run in runs:
        cells = [_cells(gpu, with_mfu=in_table) for gpu in run.gpus[:most]]
        rows += [(run.model if index == 0 else "", *of_gpu) for index, of_gpu in enumerate(cells)]
    lines.columns(rows if several else [row[1:] for row in rows], names=2 if several else 1)
    lines.rows_left(sum(max(0, len(run.gpus) - most) for run in runs))
    if without := _without_room(runs):
        lines.fact("does not fit", f"{without}: no such run is possible")
    for band in filter(None, (_band(gpu, _where(run, gpu, several)) for run in runs for gpu in run.gpus[:most])):
        if bands:
            lines.fact("by its band", band)
    for run in runs:
        for gpu in run.gpus[:most]:
            if gpu.implied_mfu:
                name = _where(run, gpu, several)
                mfus = "; ".join(
                    f"{FLOP_CONVENTIONS[entry.convention]} {percent(entry.mfu)}" for entry in gpu.implied_mfu
                )
                lines.fact("implied MFU", f"{name}: {mfus}")
                if not several and len(run.gpus) == 1:
                    lines.fact("is it possible", _verdict(gpu, run.precision))
    if not several:
        _work(lines, first)
        _fewest(lines, first, most, predicted=predicted)
    lines.note(
        "MFU", f"of the dense 16-bit peak, model FLOPs by its own count{_above_peak(runs)}{_beyond_the_format(runs)}"
    )
    lines.note("not in the bill", LEFT_OUT)


def _at_utilisation(run: TrainingRun) -> str:
    """The given speed or hours, else the utilisation."""
    if run.tokens_per_second_per_gpu is not None:
        return f" at {run.tokens_per_second_per_gpu:,g} tokens/s per GPU"
    if run.published_gpu_hours is not None:
        return f" in {run.published_gpu_hours:,.0f} GPU-hours"
    outcomes = run.gpus[0].outcomes
    if _is_predicted(run.gpus[0]):
        return f" at {_utilisation(run.gpus[0])} MFU, predicted"
    shares = dict.fromkeys(short_percent(outcome.mfu) for outcome in (outcomes[0], outcomes[-1]))
    return f" at {' to '.join(shares)} MFU{', assumed' if outcomes[0].mfu_source == 'assumed' else ''}"


def _verdict(gpu: GpuRun, precision: str) -> str:
    """A plan with impossible hours or speed is refused, so the rest is how the claim compares with what is expected.

    That is the band of the layout's step where it was timed, else what is assumed.
    """
    (fewest,) = (entry for entry in gpu.implied_mfu if entry.convention == FEWEST_FLOPS)
    share = fewest.tflop_per_s / gpu.attainable_tflop_per_s
    own, expected = gpu.outcomes[0].mfu, gpu.predicted_mfus or MFU_RANGE
    least, most = min(expected), max(expected)
    place = "below" if own < least else "above" if own > most else "within"
    answer = "not excluded" if own > most or precision == "fp32" else "yes"
    peak = "the 16-bit peak, which no GPU reaches in fp32" if precision == "fp32" else "the peak"
    whence = "is predicted for this layout" if gpu.predicted_mfus else "is assumed where none is given"
    return (
        f"{answer}: the fewest FLOPs that training computes take {percent(share, 0)} of {peak}; by its own count it is "
        f"{place} the {percent(least, 0)} to {percent(most, 0)} MFU that {whence}"
    )


def _beyond_the_format(runs: Sequence[TrainingRun]) -> str:
    """What the 16-bit peak does not fit."""
    first = runs[0]
    if first.precision == "fp32":
        return "; fp32 products run at a fraction of it"
    without = [gpu.gpu for gpu in first.gpus if gpu.attainable_tflop_per_s == gpu.peak_dense_tflop_per_s]
    return f"; {listed(without)} cannot multiply in FP8" if first.precision == "fp8" and without else ""


def _is_predicted(gpu: GpuRun) -> bool:
    return gpu.outcomes[0].mfu_source == "predicted"


def _without_room(runs: Sequence[TrainingRun]) -> str:
    """The GPUs that a step of a run's layout does not fit as it is, and of several runs the models; empty if none."""
    models: dict[str, list[str]] = {}
    for run in runs:
        for gpu in run.gpus:
            if gpu.step_fits is False:
                models.setdefault(gpu.gpu, []).append(run.model)
    if len(runs) == 1:
        return listed(list(models))
    gpus: dict[str, list[str]] = {}
    for name, names in models.items():
        gpus.setdefault(", ".join(names), []).append(name)
    return "; ".join(f"{names} on {', '.join(on)}" for names, on in gpus.items())


def _where(run: TrainingRun, gpu: GpuRun, several: bool) -> str:
    """The GPU, and of several runs the model."""
    return f"{run.model}, {gpu.gpu}" if several else gpu.gpu


def _band(gpu: GpuRun, name: str) -> str:
    """What the ends of the band of a predicted step make of hours and dollars; empty if it has no width."""
    slow, fast = gpu.outcomes[0], gpu.outcomes[-1]
    if not _is_predicted(gpu) or slow is fast:
        return ""
    hours, cost = readable_range(fast.gpu_hours, slow.gpu_hours), readable_range(fast.cost_usd, slow.cost_usd, "$")
    return f"{name}: {hours} GPU-hours, {cost}"


def _utilisation(gpu: GpuRun) -> str:
    """The predicted MFU with the ends of its band; the range that is assumed; empty if it is given."""
    ends = [f"{100 * outcome.mfu:.0f}" for outcome in (gpu.outcomes[0], gpu.outcomes[-1])]
    if not _is_predicted(gpu):
        return f"{NONE.join(ends)} %, assumed" if gpu.outcomes[0].mfu_source == "assumed" else ""
    predicted = percent(gpu.outcomes[len(gpu.outcomes) // 2].mfu, 0)
    return predicted if ends[0] == ends[1] else f"{predicted} ({NONE.join(ends)})"


def _cells(gpu: GpuRun, *, with_mfu: bool) -> tuple[str, ...]:
    """One row; ranges go from the outcome with the fewest hours to that with the most.

    What is predicted is that alone.
    """
    least, most = sorted((gpu.outcomes[0], gpu.outcomes[-1]), key=lambda outcome: outcome.gpu_hours)
    if _is_predicted(gpu):
        least = most = gpu.outcomes[len(gpu.outcomes) // 2]
    return (
        gpu.gpu,
        _utilisation(gpu) if with_mfu else "",
        f"{gpu.price_usd_per_hour:,.2f}",
        readable_range(least.gpu_hours, most.gpu_hours),
        readable_range(least.days, most.days) if least.days is not None and most.days is not None else "",
        readable_range(least.cost_usd, most.cost_usd, "$"),
    )


def _work(lines: Lines, run: TrainingRun) -> None:
    """Add FLOPs and steps."""
    text = f"{scientific(run.training_flops)}, {readable(run.training_flops_per_token, FLOP_UNITS)} a token"
    if run.steps is not None and run.global_batch_tokens is not None:
        text += f"; {integer(run.steps)} steps of {readable(run.global_batch_tokens)} tokens"
    lines.note("FLOPs", text)


def _above_peak(runs: Sequence[TrainingRun]) -> str:
    above = [(outcome.mfu, gpu) for run in runs for gpu in run.gpus for outcome in gpu.outcomes if outcome.mfu > 1]
    if not above:
        return ""
    if not any(is_above_the_peak(mfu, gpu) for mfu, gpu in above):
        return "; above 100 % in FP8"
    return "; above 100 % more is counted than a causal kernel computes"


def _fewest(lines: Lines, run: TrainingRun, most: int, *, predicted: bool) -> None:
    """Add how many GPUs hold the model states, the memory not included, and a warning if `num_gpus` is too small.

    Where the run is `predicted` for a layout, it stands with the ranks whether they fit: then this is a note.
    """
    counts = listed([f"{integer(gpu.fewest_gpus)} {gpu.gpu}" for gpu in run.gpus[:most]])
    states = Bytes(run.model_state_bytes)(run.model_state_bytes)
    left_out = what_states_leave_out(*((run.beside_states_bytes, run.update_bytes) if lines.notes else (None,)))
    add = lines.note if predicted else lines.fact
    add("GPUs at least", f"{counts} hold the model states, {states}; left out: {left_out}")
    for gpu in run.gpus:
        if gpu.num_gpus is not None and gpu.num_gpus < gpu.fewest_gpus:
            lines.fact("", f"{integer(gpu.num_gpus)} {gpu.gpu} cannot hold the model states")
