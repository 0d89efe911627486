"""A budget on the first screen: FLOPs, the compute-optimal model, and the budget spent on given models."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from counting.cost.budget import BudgetPlan
from counting.cost.budget_on_model import BudgetOnModel
from counting.cost.hardware import find_gpu
from counting.cost.scaling_laws import LAWS
from counting.report.format import dollars, readable, readable_dollars, scientific, short_percent, three_digits
from counting.report.screen.laws import loss_with_interval, with_interval
from counting.report.screen.lines import Lines

if TYPE_CHECKING:
    from counting.cost.beyond_compute import BeyondCompute
    from counting.cost.design import Design


def budget_screen(
    lines: Lines, budget: BudgetPlan, said: Literal["whole", "short", "least"] = "whole", *, in_table: bool = False
) -> None:
    """Add the best GPU, and the compute-optimal model with its tokens.

    Short is without a GPU that buys more; the least has of the model one line, and none if it is `in_table` of laws.
    """
    best = next(option for option in budget.options if option.gpu == budget.best_gpu)
    lines.heading(f"What {readable_dollars(budget.budget_usd)} buys at {short_percent(budget.mfu)} MFU")
    lines.fact(
        "FLOPs",
        f"{scientific(budget.training_flops)}: {readable(budget.gpu_hours)} {best.gpu}-hours at "
        f"{dollars(best.price_usd_per_hour)}",
    )
    others = [option for option in budget.options if option.gpu != budget.best_gpu]
    for label, options in (
        ("as much on", [option for option in others if option.training_flops == budget.training_flops]),
        ("less on", [option for option in others if option.training_flops != budget.training_flops]),
    ):
        if options:
            lines.note(label, ", ".join(f"{option.gpu} {scientific(option.training_flops)}" for option in options))
    more = budget.more_on
    if more is not None and said == "whole":
        lines.fact(
            "more on",
            f"{more.gpu}, of all in the catalogue with a price: {scientific(more.training_flops)} at "
            f"{dollars(more.price_usd_per_hour)} an hour ({find_gpu(more.gpu).sources.price}); these are the default "
            "GPUs",
        )
    if budget.days is not None and budget.num_gpus is not None:
        lines.fact("days", f"{three_digits(budget.days)} on {budget.num_gpus:,} {best.gpu}")
    if said == "least":
        if not in_table:
            lines.fact("best model", _in_short(budget))
        return
    intervals = budget.intervals
    parameters, tokens, ratio, loss = (
        (None,) * 4
        if intervals is None
        else (intervals.parameters, intervals.tokens, intervals.tokens_per_parameter, intervals.loss)
    )
    brackets = "" if intervals is None else " (in brackets: 95 %)"
    lines.fact(
        "best model",
        f"{with_interval(readable(budget.optimal_parameters), parameters)} parameters on "
        f"{with_interval(readable(budget.optimal_tokens), tokens)} tokens, "
        f"{with_interval(three_digits(budget.tokens_per_parameter), ratio)} per parameter; predicted loss "
        f"{loss_with_interval(budget.predicted_loss, loss)} nats per token{brackets}",
    )
    lines.fact("by the law", _followed(budget))


def _in_short(budget: BudgetPlan) -> str:
    size, tokens = readable(budget.optimal_parameters), readable(budget.optimal_tokens)
    return f"{size} on {tokens} tokens, loss {budget.predicted_loss:.3f}, by {budget.law.name}"


def _followed(budget: BudgetPlan) -> str:
    """The law, its number of runs if it says it, how far it is extrapolated, and why a file gives no intervals."""
    law = budget.law
    runs = "" if law.runs is None else f", fitted to {law.runs:,} runs"
    beyond = f"; extrapolated by {budget.orders_beyond:.1f} orders of magnitude" if budget.extrapolated else ""
    without = "" if law in LAWS or law.bootstrap else "; its file has no draws, so there are no intervals"
    return f"{law.name}{runs}{beyond}{without}"


def spent_screen(lines: Lines, spent: Sequence[BudgetOnModel], beyond: "BeyondCompute | None" = None) -> None:
    """Add a table of the budget spent on each analysed model, with what is asked of it beyond plain compute."""
    limited = None if beyond is None else beyond.data_limited
    served = None if beyond is None else beyond.inference_aware
    repeats = iter(() if limited is None else limited.models)
    serving = iter(() if served is None else served.models)
    rows = [("the budget on", "tokens", "N taken as", "tokens per N", "× optimum", "loss", "epochs", "repeats", "left")]
    for model in spent:
        left = next(serving, None)
        for index, reading in enumerate(model.readings):
            repeated, star = next(repeats, None), "*" * reading.extrapolated
            interval = None if lines.narrow else reading.predicted_loss_interval
            rows.append(
                (
                    "" if index else model.model,
                    "" if index else readable(model.tokens),
                    f"{reading.taken_as}, {readable(reading.parameters)}",
                    three_digits(reading.tokens_per_parameter),
                    three_digits(reading.tokens_over_optimal),
                    loss_with_interval(reading.predicted_loss, interval) + star,
                    "" if repeated is None or index else three_digits(repeated.epochs),
                    "" if repeated is None else f"{repeated.predicted_loss:.3f}{star}",
                    "" if left is None or index else readable(left.tokens),
                )
            )
    lines.columns(rows, less=("tokens per N", "× optimum", "epochs"))
    notes = []
    if any(reading.extrapolated for model in spent for reading in model.readings):
        notes.append("* beyond the sizes or tokens that the law was fitted to")
    if limited is not None:
        notes.append(f"repeats: the loss with {readable(limited.optimum.unique_tokens)} unique")
    if served is not None:
        notes.append(f"left: tokens of training, beside serving {readable(served.optimum.inference_tokens)}")
    if len(notes) > 1:
        notes = [note.replace("sizes or tokens that the law was fitted to", "runs of its law") for note in notes]
    if notes:
        lines.text("; ".join(notes))


def design_screen(lines: Lines, design: "Design", path: str, *, experts: bool = True) -> None:
    """Add the model designed for the budget, and if `experts` what its N means if it is a mixture of them."""
    config = design.config
    mixture = design.mixture
    active = f" of {readable(design.parameters)}" if mixture else ""
    interval = None if lines.narrow else design.predicted_loss_interval
    lines.fact(
        "designed",
        f"{path}: {design.family}, {config['num_hidden_layers']} layers × {config['hidden_size']}, "
        f"{readable(design.sized_parameters)}{active} parameters {'active, ' if mixture else ''}as measured, "
        f"{design.relative_error:+.2%} from the best; {readable(design.tokens)} tokens, "
        f"predicted loss {loss_with_interval(design.predicted_loss, interval)}",
    )
    if mixture is not None and experts:
        beyond = (
            f", {mixture.orders_beyond:.1f} orders of magnitude beyond its runs" if mixture.orders_beyond > 0 else ""
        )
        lines.fact(
            "N is active",
            f"{config['num_experts_per_tok']} of {config['n_routed_experts']} experts for a token; "
            f"{design.scaling_law} does not count the others. {mixture.scaling_law}, on other data, has "
            f"{mixture.predicted_loss:.3f} for the mixture and {mixture.dense_loss:.3f} for a dense model of this N"
            f"{beyond}",
        )
