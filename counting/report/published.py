"""Published runs beside this project's numbers, and the claim examined, as tables."""

from collections.abc import Iterable, Sequence

from counting.cost.conventions import Convention
from counting.published.claim import Claim
from counting.published.runs import ExaminedRun, Figure, Quantity
from counting.report.format import (
    NONE,
    dollars,
    facts_table,
    integer,
    optional,
    percent,
    print_notes,
    print_tables,
    rows_table,
    scientific,
    shifted,
)
from counting.report.run import CONVENTION_NOTE, CONVENTIONS

# What a quantity is called, what it is divided by to be printed, and with how many decimals.
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


def print_published(runs: Sequence[ExaminedRun]) -> None:
    """What the published hours imply, and stated figures beside ours."""
    headings = ("run", "GPU", "tokens", "GPU-hours", "FLOPs, own", "6 N", "+ full", "+ causal", "own")
    hours = rows_table("The MFU that published hours and speeds imply", headings, names=2)
    figures = rows_table(
        "Stated figures, and ours", ("run", "quantity", "counted as", "stated", "ours", "apart"), names=3
    )
    for run in runs:
        if run.implied_mfu:
            mfu = {entry.convention: percent(entry.mfu) for entry in run.implied_mfu}
            flops = {entry.convention: entry.training_flops for entry in run.implied_mfu}.get("own")
            hours.add_row(
                run.name,
                run.gpu,
                optional(None if run.tokens is None else run.tokens / 10**12, 1) + ("" if run.tokens is None else " T"),
                optional(run.gpu_hours),
                NONE if flops is None else scientific(flops),
                *(mfu.get(convention, NONE) for convention in CONVENTIONS),
            )
        for figure in run.figures:
            figures.add_row(run.name, *_figure_cells(figure))
        if run.figures:
            figures.add_section()
    print_tables(hours, figures)
    print_notes(
        [
            "MFU against the dense 16-bit peak. Columns: 6 N; + full: 6 N' + full attention; + causal: 6 N' + causal "
            "attention; own: the model's own count, three forward passes, multi-token prediction trained.",
            CONVENTION_NOTE,
            *(
                f"{names}: counted by the paper's formula, {formula}."
                for names, formula in _grouped((run.name, run.counted_by) for run in runs if run.config is None)
            ),
            *(f"{names}: {note}." for names, note in _grouped((run.name, run.note) for run in runs)),
            *(f"{names}: {source}." for names, source in _grouped((run.name, run.source) for run in runs)),
        ]
    )


def _figure_cells(figure: Figure) -> tuple[str, str, str, str, str]:
    name, unit, places = QUANTITIES[figure.quantity]
    convention = "" if figure.convention is None else SHORT_CONVENTIONS[figure.convention]
    stated, ours = (optional(value / unit, places) for value in (figure.stated, figure.ours))
    return name, convention, stated, ours, f"{100 * figure.relative_difference:+.2f} %"


def _grouped(entries: Iterable[tuple[str, str | None]]) -> list[tuple[str, str]]:
    """(names, text), the names of one text joined; without those that have none."""
    names: dict[str, list[str]] = {}
    for name, text in entries:
        if text is not None:
            names.setdefault(text, []).append(name)
    return [(", ".join(joined), text) for text, joined in names.items()]


def print_claim(claim: Claim) -> None:
    """The argument in one page."""
    run = claim.run
    bill = rows_table(
        f"1. The claim: {run.name} for {dollars(claim.total_cost_usd)}",
        ("phase", f"{run.gpu}-hours", f"at {dollars(claim.price_usd_per_hour)}/hour"),
    )
    for phase in claim.phases:
        bill.add_row(phase.phase, f"{phase.gpu_hours:,.0f}", dollars(phase.cost_usd))
    bill.add_section()
    bill.add_row("total", f"{claim.total_gpu_hours:,.0f}", dollars(claim.total_cost_usd), style="bold")

    headings = ("counted as", "FLOPs per token", "training FLOPs", "TFLOP/s per GPU", "implied MFU", "measured MFU")
    meaning = rows_table(
        f"2. What {optional(run.gpu_hours)} {run.gpu}-hours for {integer(run.tokens or 0)} tokens mean, "
        f"{claim.days:.1f} days on {optional(run.num_gpus)} GPUs",
        headings,
    )
    stated = {figure.convention: figure.stated for figure in claim.measured.figures if figure.quantity == "mfu"}
    for entry in run.implied_mfu:
        meaning.add_row(
            CONVENTIONS[entry.convention],
            integer(entry.training_flops_per_token),
            scientific(entry.training_flops or 0),
            f"{entry.tflop_per_s:,.1f}",
            percent(entry.mfu),
            percent(stated[entry.convention]) if entry.convention in stated else "",
        )

    elsewhere = rows_table(
        "3. The same pre-training elsewhere, at the same MFU",
        ("GPU", "dense 16-bit TFLOP/s", "$/hour", "GPU-hours", "cost"),
    )
    for gpu in claim.on_gpus:
        elsewhere.add_row(
            gpu.gpu,
            f"{gpu.peak_dense_tflop_per_s:,g}",
            f"{gpu.price_usd_per_hour:,.2f}",
            f"{gpu.gpu_hours:,.0f}",
            dollars(gpu.cost_usd),
        )

    models = rows_table(
        f"4. Other models, same tokens, MFU and GPU, at {dollars(claim.price_usd_per_hour)}/hour",
        ("model", "parameters, 10^9", "active", "FLOPs per token", "GPU-hours", "cost", "×"),
    )
    for model in claim.models:
        models.add_row(
            model.model,
            shifted(model.total_parameters, 9, places=2),
            shifted(model.active_parameters, 9, places=2),
            integer(model.training_flops_per_token),
            f"{model.gpu_hours:,.0f}",
            dollars(model.cost_usd),
            f"{model.cost_over_claim:.2f}",
        )

    prices = [f"{dollars(price)}/hour" for price in claim.prices_usd_per_hour]
    costs = rows_table(f"5. How the cost of pre-training moves, on {run.gpu}", ("MFU, own count", "GPU-hours", *prices))
    for row in claim.costs:
        implied = row.mfu == claim.mfu
        costs.add_row(
            percent(row.mfu) + (" (implied)" if implied else ""),
            f"{row.gpu_hours:,.0f}",
            *map(dollars, row.costs_usd),
            style="bold" if implied else None,
        )
    mfus = sorted(entry.mfu for entry in run.implied_mfu)
    verdict = [
        (
            "Is it possible?",
            f"The hours imply an MFU from {percent(mfus[0])} to {percent(mfus[-1])}, by how FLOPs are counted; above 1 "
            "it would not be.",
        ),
        (
            "Does it agree?",
            f"The implied MFU differs by at most {percent(claim.largest_mfu_difference)} from what the same authors "
            f"measured of its training and published apart from the bill ({claim.measured.source}); of which run it is "
            "not said.",
        ),
        ("What it leaves out", f"By the report's own account: {claim.left_out.what} ({claim.left_out.source})."),
        (
            "What it assumes",
            f"That a GPU is rented for {dollars(claim.price_usd_per_hour)} an hour: the cluster is not bought, and "
            "people are not paid, from this bill.",
        ),
    ]
    print_tables(bill, meaning, elsewhere, models, costs, facts_table("6. What to make of it", verdict))
    print_notes(
        [
            f"MFU against the dense 16-bit peak, also of a run in FP8. {CONVENTION_NOTE}",
            "3 is a scale, no quote: A100 has no FP8, and no GPU is known to reach the share of its peak that another "
            "does. The dense models of 4 are designed here, Llama-style, and measured like any other.",
            f"Sources: {run.source}; prices of other GPUs: configs/gpus.json.",
        ]
    )
