"""Tables of published bills and stated figures beside this project's numbers."""

from collections.abc import Iterator, Sequence

from counting.cost.conventions import Convention
from counting.published.runs import ExaminedRun, Figure, Quantity
from counting.records.conventions import CONVENTION_NOTE, FLOP_CONVENTIONS
from counting.report.format import NONE, Number, decimal, optional, percent, scientific, signed_percent
from counting.report.published.grouped import grouped
from counting.report.tables import Notes, Part, rows_table

# Quantity -> label, divisor for printing, number of decimals.
QUANTITIES: dict[Quantity, tuple[str, float, int]] = {
    "training_flops": ("training FLOPs, 10^21", 1e21, 1),
    "petaflop_days": ("PFLOP/s-days", 1, 1),
    "gflop_per_token": ("GFLOP per token", 1, 2),
    "mfu": ("MFU, %", 0.01, 2),
    "tflop_per_s": ("TFLOP/s per GPU", 1, 1),
    "seconds_per_step": ("seconds/step, of MFU", 1, 3),
    "tokens_per_day": ("tokens per day, 10^9", 1e9, 2),
    "gpu_hours_per_trillion_tokens": ("GPU-hours/10^12 tokens", 1, 0),
    "cost_usd": ("cost, $", 1, 0),
    "kv_cache_kb_per_token": ("KV cache, KB/token", 1, 3),
}
SHORT_CONVENTIONS: dict[Convention, str] = {
    "6N": "6 N",
    "6N_full_attention": "6 N' + full",
    "6N_causal_attention": "6 N' + causal",
    "own": "own count",
}


def published_parts(runs: Sequence[ExaminedRun]) -> Iterator[Part]:
    """The MFU that published hours imply, and the stated figures beside ours."""
    headings = ("run", "GPU", "tokens", "GPU-hours", "FLOPs, own", "6 N", "+ full", "+ causal", "own")
    hours = rows_table("The MFU that published hours and speeds imply", headings, names=2)
    figures = rows_table(
        "Stated figures, and ours", ("run, quantity", "counted as", "stated", "ours", "apart"), names=2
    )
    for run in runs:
        if run.implied_mfu:
            mfu: dict[str, Number] = {entry.convention: percent(entry.mfu) for entry in run.implied_mfu}
            flops = {entry.convention: entry.training_flops for entry in run.implied_mfu}.get("own")
            hours.add_row(
                run.name,
                run.gpu or "",
                NONE if run.tokens is None else Number(f"{run.tokens / 10**12:,.1f} T", run.tokens),
                optional(run.gpu_hours),
                NONE if flops is None else scientific(flops),
                *(mfu.get(convention, NONE) for convention in FLOP_CONVENTIONS),
            )
        if run.figures:
            figures.add_row(run.name, bold=True)
            for figure in run.figures:
                name, *cells = _figure_cells(figure)
                figures.add_row(f"  {name}", *cells)
            figures.add_section()
    yield hours
    yield figures
    yield Notes(
        (
            "MFU is relative to the dense 16-bit peak. Columns: 6 N; + full: 6 N' + full attention; + causal: 6 N' + "
            "causal attention; own: the model's own count, three forward passes, an indexer's once, with multi-token "
            "prediction.",
            CONVENTION_NOTE,
            *(
                f"{names}: counted by the paper's formula, {formula}."
                for names, formula in grouped((run.name, run.counted_by) for run in runs if run.config is None)
            ),
            *(f"{names}: {note}." for names, note in grouped((run.name, run.note) for run in runs)),
            *(f"{names}: {source}." for names, source in grouped((run.name, run.source) for run in runs)),
        )
    )


def _figure_cells(figure: Figure) -> tuple[str, str, str, str, str]:
    name, unit, places = QUANTITIES[figure.quantity]
    convention = "" if figure.convention is None else SHORT_CONVENTIONS[figure.convention]
    stated, ours = (Number(decimal(value / unit, places), value) for value in (figure.stated, figure.ours))
    return name, convention, stated, ours, signed_percent(figure.relative_difference)
