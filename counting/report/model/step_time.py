"""The table of how long a training step takes on each GPU, and where its time goes."""

from collections.abc import Sequence

from counting.report.format import decimal, percent
from counting.report.tables import Table, rows_table
from counting.step.time import NotTimed, StepTime

TIME_PARTS = {
    "products": "products",
    "attention": "attention",
    "memory_bound": "ops by their bytes, launches",
    "bubble": "waiting for other stages",
    "optimizer": "optimiser",
}
TIME_CAPTION = (
    "Seconds of one step, on the rank of the pipeline with the most work; parts sum to the step. Exposed: while "
    "nothing is computed. No run is faster than the bound. Low to high: {band}. MFU: model FLOPs by the own count, of "
    "the dense 16-bit peak; HFU: FLOPs as executed."
)


def time_table(times: Sequence[StepTime]) -> Table:
    """A column for each GPU."""
    table = rows_table("How long a training step takes, seconds", ["", *(time.gpu for time in times)])
    axes = dict.fromkeys(axis for time in times for axis in time.breakdown.communication)
    rows = {label: [getattr(time.breakdown, field) for time in times] for field, label in TIME_PARTS.items()}
    for axis in axes:
        rows[f"exposed, {axis}"] = [time.breakdown.communication.get(axis, 0.0) for time in times]
    for label, seconds in rows.items():
        if any(seconds):
            table.add_row(label, *map(_seconds, seconds))
    table.add_section()
    for label, field in (
        ("the step", "seconds"),
        ("low", "low_seconds"),
        ("high", "high_seconds"),
        ("the bound", "bound_seconds"),
    ):
        table.add_row(label, *(_seconds(getattr(time, field)) for time in times))
    table.add_section()
    table.add_row("tokens/s a GPU", *(decimal(time.tokens_per_second_per_gpu, 0) for time in times))
    for label, field in (("MFU", "mfu"), ("of the bound", "bound_mfu"), ("HFU", "hfu")):
        table.add_row(label, *(percent(getattr(time, field), 1) for time in times))
    table.add_row("rates of", *(time.rates_of for time in times))
    table.add_row("basis", *(time.basis for time in times))
    calibrated = any(time.basis == "calibrated" for time in times)
    band = "the spread of the measured steps" if calibrated else "the errors of 8 of 10 published runs"
    table.caption = TIME_CAPTION.format(band=band)
    return table


def time_notes(times: Sequence[StepTime], not_timed: Sequence[NotTimed] = ()) -> list[str]:
    """What the times assume, each once, with the GPUs if it is not of all of them; and of which GPU there is none."""
    gpus: dict[str, list[str]] = {}
    for time in times:
        for assumption in time.assumptions:
            gpus.setdefault(assumption, []).append(time.gpu)
    all_of_them = len(times)
    without = [
        f"How long a step takes is not worked out on {one.gpu}: {': '.join(filter(None, (one.reason, one.remedy)))}."
        for one in not_timed
    ]
    return without + [
        f"Time of a step{'' if len(names) == all_of_them else ' on ' + ', '.join(names)}: {assumption}"
        for assumption, names in gpus.items()
    ]


def _seconds(value: float) -> str:
    return decimal(value, 4)
