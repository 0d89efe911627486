"""Tables of the examined claim."""

from collections.abc import Iterator

from counting.published.claim import Claim
from counting.records.conventions import CONVENTION_NOTE, FLOP_CONVENTIONS
from counting.report.format import decimal, dollars, integer, optional, percent, scientific, shifted, significant
from counting.report.tables import Notes, Part, facts_table, rows_table


def claim_parts(claim: Claim) -> Iterator[Part]:
    """The tables and the conclusions."""
    run = claim.run
    bill = rows_table(
        f"1. The claim: {run.name} for {dollars(claim.total_cost_usd)}",
        ("phase", f"{run.gpu}-hours", f"at {dollars(claim.price_usd_per_hour)}/hour"),
    )
    for phase in claim.phases:
        bill.add_row(phase.phase, decimal(phase.gpu_hours, 0), dollars(phase.cost_usd))
    bill.add_section()
    bill.add_row("total", decimal(claim.total_gpu_hours, 0), dollars(claim.total_cost_usd), bold=True)

    headings = ("counted as", "FLOPs per token", "training FLOPs", "TFLOP/s per GPU", "implied MFU", "measured MFU")
    meaning = rows_table(
        f"2. The MFU that {optional(run.gpu_hours)} {run.gpu}-hours for {integer(run.tokens or 0)} tokens imply, "
        f"{claim.days:.1f} days on {optional(run.num_gpus)} GPUs",
        headings,
    )
    stated = {figure.convention: figure.stated for figure in claim.measured.figures if figure.quantity == "mfu"}
    for entry in run.implied_mfu:
        meaning.add_row(
            FLOP_CONVENTIONS[entry.convention],
            integer(entry.training_flops_per_token),
            scientific(entry.training_flops or 0),
            decimal(entry.tflop_per_s, 1),
            percent(entry.mfu),
            percent(stated[entry.convention]) if entry.convention in stated else "",
        )

    elsewhere = rows_table(
        "3. The same pre-training on other GPUs, at the same MFU",
        ("GPU", "dense 16-bit TFLOP/s", "$/hour", "GPU-hours", "cost"),
    )
    for gpu in claim.on_gpus:
        elsewhere.add_row(
            gpu.gpu,
            significant(gpu.peak_dense_tflop_per_s),
            decimal(gpu.price_usd_per_hour, 2),
            decimal(gpu.gpu_hours, 0),
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
            decimal(model.gpu_hours, 0),
            dollars(model.cost_usd),
            decimal(model.cost_over_claim, 2),
        )

    prices = [f"{dollars(price)}/hour" for price in claim.prices_usd_per_hour]
    costs = rows_table(
        f"5. The cost of pre-training by MFU and price, on {run.gpu}", ("MFU, own count", "GPU-hours", *prices)
    )
    for row in claim.costs:
        implied = row.mfu == claim.mfu
        costs.add_row(
            f"{percent(row.mfu)} (implied)" if implied else percent(row.mfu),
            decimal(row.gpu_hours, 0),
            *map(dollars, row.costs_usd),
            bold=implied,
        )
    mfus = sorted(entry.mfu for entry in run.implied_mfu)
    verdict = [
        (
            "Is it possible?",
            f"The hours imply an MFU from {percent(mfus[0])} to {percent(mfus[-1])}, depending on how FLOPs are "
            "counted. An MFU above 100 % would be impossible.",
        ),
        (
            "Does it agree?",
            f"The implied MFU differs by at most {percent(claim.largest_mfu_difference)} from the MFU that the "
            f"same authors measured during training and published apart from the bill ({claim.measured.source}). They "
            "do not state for which run.",
        ),
        ("What it leaves out", f"According to the report itself: {claim.left_out.what} ({claim.left_out.source})."),
        (
            "What it assumes",
            f"GPUs are rented for {dollars(claim.price_usd_per_hour)} an hour. The bill includes neither the purchase "
            "of a cluster nor salaries.",
        ),
    ]
    yield from (bill, meaning, elsewhere, models, costs, facts_table("6. Conclusions", verdict))
    yield Notes(
        (
            f"MFU is relative to the dense 16-bit peak, also for a run in FP8. {CONVENTION_NOTE}",
            "Table 3 shows the scale, not a quote: A100 has no FP8, and two kinds of GPU need not reach the same "
            "share of their peaks. The dense models of table 4 are Llama-style designs of this program, and measured.",
            f"Sources: {run.source}; prices of other GPUs: configs/gpus.json.",
        )
    )
