"""The claim on the first screen: whether it is possible, and what the bill contains and leaves out."""

from counting.published.claim import Claim
from counting.records.conventions import FLOP_CONVENTIONS
from counting.report.format import FLOP_UNITS, dollars, optional, percent, readable, readable_dollars
from counting.report.screen.lines import Lines


def claim_screen(lines: Lines, claim: Claim) -> None:
    """Add a fact for each step of the argument."""
    run = claim.run
    lines.heading(f"Was {run.name} trained for {dollars(claim.total_cost_usd)}?")
    phases = ", ".join(f"{phase.phase} {phase.gpu_hours:,.0f}" for phase in claim.phases)
    lines.fact(
        "the bill",
        f"{claim.total_gpu_hours:,.0f} {run.gpu}-hours ({phases}) at {dollars(claim.price_usd_per_hour)}; pre-training "
        f"takes {claim.days:.1f} days on {optional(run.num_gpus)} GPUs",
    )
    implied = "; ".join(f"{FLOP_CONVENTIONS[entry.convention]} {percent(entry.mfu)}" for entry in run.implied_mfu)
    possible = max(entry.mfu for entry in run.implied_mfu) <= 1
    lines.fact("is it possible", f"{'yes' if possible else 'not by every count'}, the hours imply an MFU of: {implied}")
    stated = "; ".join(
        f"{FLOP_CONVENTIONS[figure.convention]} {percent(figure.stated)}"
        for figure in claim.measured.figures
        if figure.quantity == "mfu" and figure.convention is not None
    )
    lines.fact(
        "does it agree",
        f"to {percent(claim.largest_mfu_difference)}, with the MFU that its authors measured and published apart: "
        f"{stated} ({claim.measured.source})",
    )
    lines.fact(
        "elsewhere",
        "at the same MFU: "
        + ", ".join(
            f"{gpu.gpu} at {dollars(gpu.price_usd_per_hour)} {readable_dollars(gpu.cost_usd)}" for gpu in claim.on_gpus
        ),
    )
    lines.fact(
        "other models",
        "; ".join(
            f"{model.model}, {readable(model.total_parameters)}: {readable_dollars(model.cost_usd)}, "
            f"{model.cost_over_claim:.2f} ×"
            for model in claim.models[1:]
        )
        + f"; {run.name} itself {readable(claim.models[0].training_flops_per_token, FLOP_UNITS)} a token",
    )
    for row in (claim.costs[0], claim.costs[-1]):
        costs = ", ".join(
            f"{readable_dollars(cost)} at {dollars(price)}"
            for price, cost in zip(claim.prices_usd_per_hour, row.costs_usd, strict=True)
        )
        lines.fact(f"at {percent(row.mfu, 0)} MFU", f"pre-training costs {costs}")
    lines.fact("it leaves out", f"{claim.left_out.what} ({claim.left_out.source})")
    lines.fact("it assumes", "rented GPUs: the cluster is not bought, and people are not paid, from this bill")
    lines.fact("MFU", "of the dense 16-bit peak, also of a run in FP8; N counts active parameters")
