"""Tables of published speeds beside this project's times of the same steps."""

from collections.abc import Iterator, Sequence

from counting.published.throughput import ErrorSummary, ExaminedThroughput, SpeedQuantity, Throughput
from counting.report.format import decimal, integer, percent, recompute_in_words, signed_percent
from counting.report.published.grouped import grouped
from counting.report.tables import Notes, Part, rows_table

SPEED_HEADINGS = ("bound", "estimate", "measured", "error")
ERROR_HEADINGS = ("rows", "median", "signed", "10th", "90th", "worst")
UNITS: dict[SpeedQuantity, str] = {
    "seconds": "s a step",
    "tokens_per_second_per_gpu": "tokens/s a GPU",
    "tflop_per_second_per_gpu": "TFLOP/s a GPU",
}
WHAT_IT_IS = (
    "Seconds of a step. The bound is what no run beats; the error is estimate / measured - 1, below 0 where the "
    "estimate is too fast. 8 of 10 errors are between the 10th and the 90th percentile. No constant is fitted to a row."
)


def published_throughput_parts(throughput: Throughput) -> Iterator[Part]:
    """The times of all rows that are run, what their errors come to, the ratios, and why others are not run."""
    times = rows_table(
        "Published steps, and how long they are said to take, seconds",
        ("run", "GPUs", *SPEED_HEADINGS, "MFU"),
        names=1,
    )
    rows, run = throughput.rows, [row for row in throughput.rows if row.step_time is not None]
    for row in run:
        assert row.step_time is not None and row.layout is not None
        mfu = percent(row.step_time.mfu, 1)
        times.add_row(row.name, f"{row.layout.num_gpus:,} {row.cluster.gpu}", *speed_cells(row), mfu)
    errors = rows_table("Errors of the estimates", ("of", *ERROR_HEADINGS, "the worst"), names=1)
    for found in throughput.errors:
        errors.add_row(kind_of_errors(found), integer(found.rows), *error_cells(found), found.worst)
    ratios = rows_table("Ratios of two steps", ("ratio", "measured", "estimated", "error"), names=1)
    for ratio in throughput.ratios:
        cells = decimal(ratio.measured, 3), decimal(ratio.estimated, 3), signed_percent(ratio.relative_error, 1)
        ratios.add_row(ratio.name, *cells)
    yield from (times, errors, ratios)
    yield Notes(
        (
            WHAT_IT_IS,
            *(f"{row.name}: printed {printed(row)}; here {settings(row)}." for row in run),
            *(f"{names}: {ran}." for names, ran in grouped(((row.name, row.ran) for row in run), ";")),
            *(f"Not modelled: {names}: {text}." for names, text in grouped(((r.name, r.differs) for r in run), ";")),
            *(
                f"Not run: {names}: {why}."
                for names, why in grouped(((r.name, r.not_run) for r in throughput.rows), ";")
            ),
            *(f"{names}: {source}." for names, source in grouped(((r.name, r.source) for r in rows), ";")),
        )
    )


def speed_cells(row: ExaminedThroughput) -> tuple[str, str, str, str]:
    """Bound, estimate, measured, and the error, of a row that is run."""
    time, measured, error = row.step_time, row.measured_seconds, row.relative_error
    assert time is not None and measured is not None and error is not None
    return seconds(time.bound_seconds), seconds(time.seconds), seconds(measured), signed_percent(error, 1)


def printed(row: ExaminedThroughput) -> str:
    """The speed as its source has it."""
    return f"{row.measured.value:,.10g} {UNITS[row.measured.quantity]}"


def seconds(value: float) -> str:
    """Four digits at least, and two decimals at most: 13.75, 0.7656."""
    return decimal(value, 2 if value >= 10 else 3)


def error_cells(errors: ErrorSummary) -> tuple[str, str, str, str, str]:
    """The absolute and the signed median, the 10th and the 90th percentile, and the worst error."""
    return (
        percent(errors.median_absolute, 1),
        signed_percent(errors.median, 1),
        signed_percent(errors.tenth, 1),
        signed_percent(errors.ninetieth, 1),
        signed_percent(errors.worst_error, 1),
    )


def kind_of_errors(errors: ErrorSummary) -> str:
    """Which rows these errors are of."""
    kind = {"dense": "dense", "mixture": "mixtures", "all": "all"}[errors.kind]
    return f"{kind}, to be met" if errors.gate else f"{kind}, with the others"


def settings(row: ExaminedThroughput) -> str:
    """What the step that is measured here is run with."""
    setup, layout = row.setup, row.layout
    assert setup is not None and layout is not None and row.config is not None
    axes = [f"{axis} {getattr(layout, axis)}" for axis in ("dp", "fsdp", "tp", "cp", "ep", "pp")]
    pipeline = [f"{layout.schedule}, {layout.stages_per_rank} a rank"] if layout.pp > 1 else []
    products = ["linear layers in FP8"] if row.cluster.products == "fp8" else []
    kernel = [f"attention by {row.cluster.attention_kernel}"] if row.cluster.attention_kernel else []
    parts: Sequence[str] = [
        row.config,
        f"{layout.num_gpus:,} {row.cluster.gpu}",
        *(axis for axis in axes if not axis.endswith(" 1")),
        *pipeline,
        f"{setup.micro_batches} x {setup.micro_batch_size} sequences of {setup.sequence_length:,}",
        f"recompute {recompute_in_words(setup.recompute)}",
        setup.execution,
        setup.precision,
        *products,
        *kernel,
    ]
    return ", ".join(parts)
