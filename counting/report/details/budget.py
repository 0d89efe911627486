"""Tables of a budget: the FLOPs that it buys, the compute-optimal model, and the budget spent on a given model."""

from collections.abc import Iterator

from counting.cost.budget import BudgetPlan
from counting.cost.budget_on_model import BudgetOnModel
from counting.report.conventions import how_counted
from counting.report.details.laws import apart_parts, count_range, law_parts, loss_range
from counting.report.format import NONE, Number, decimal, in_unit, integer, scientific, significant
from counting.report.tables import Notes, Part, Table, facts_table, rows_table


def budget_parts(budget: BudgetPlan) -> Iterator[Part]:
    """The FLOPs that the budget buys on each GPU, and the compute-optimal model for the best one."""
    title = f"What ${budget.budget_usd:,.2f} buys at {budget.mfu:.3g} of the dense peak"
    table = rows_table(title, ("GPU", "$/hour", "peak TFLOP/s", "dtype", "GPU-hours", "FLOPs bought"))
    more = [] if budget.more_on is None else [budget.more_on]
    for option in (*budget.options, *more):
        best = option.gpu == budget.best_gpu
        table.add_row(
            f"{option.gpu} (best)"
            if best
            else f"{option.gpu} (buys more, in catalogue)"
            if option in more
            else option.gpu,
            decimal(option.price_usd_per_hour, 2),
            significant(option.peak_dense_tflop_per_s),
            option.training_dtype,
            decimal(option.gpu_hours, 0),
            Number(f"{float(option.training_flops):.4g}", option.training_flops),
            bold=best,
        )
    law, intervals = budget.law, budget.intervals
    facts = [
        ("Scaling law", f"{law.name}: {law.source}"),
        ("Model", f"{budget.optimal_parameters:,} parameters ({in_unit(budget.optimal_parameters, 9, 4)} billion)"),
        ("Tokens", f"{budget.optimal_tokens:,} ({in_unit(budget.optimal_tokens, 9, 4)} billion)"),
        ("Tokens per parameter", f"{budget.tokens_per_parameter:.2f}"),
        ("GPU-hours", f"{budget.gpu_hours:,.0f} on {budget.best_gpu}"),
        *([] if budget.days is None else [("Days", f"{budget.days:,.1f} on {budget.num_gpus:,} {budget.best_gpu}")]),
        ("Predicted loss", f"{budget.predicted_loss:.5f} nats per token"),
    ]
    if intervals is not None:
        facts += [
            ("Parameters, 95 %", count_range(intervals.parameters)),
            ("Tokens, 95 %", count_range(intervals.tokens)),
            (
                "Tokens per parameter, 95 %",
                f"{intervals.tokens_per_parameter.low:.4g} to {intervals.tokens_per_parameter.high:.4g}",
            ),
            ("Predicted loss, 95 %", f"{loss_range(intervals.loss)} nats per token"),
        ]
    yield table
    yield facts_table("The compute-optimal model, C = 6 N D", facts)
    if budget.extrapolated:
        note = (
            "The law is extrapolated: it was fitted to models of "
            f"{in_unit(law.fitted_parameters[0], 6)} million to {in_unit(law.fitted_parameters[1], 9)} billion "
            f"parameters on {in_unit(law.fitted_tokens[0], 9)} to {in_unit(law.fitted_tokens[1], 9)} billion tokens."
        )
        yield Notes((note,))
    yield from law_parts(law)
    yield from apart_parts(budget.apart)


def budget_on_model_parts(spent: BudgetOnModel, budget: BudgetPlan) -> Iterator[Part]:
    """The tokens that the budget trains one model on, and the prediction of the scaling law for it."""
    how = how_counted(f"sequence length {integer(spent.sequence_length)}", spent.mtp_trained, spent.has_indexer)
    facts = [
        ("Tokens", f"{integer(spent.tokens)} in {budget.gpu_hours:,.0f} {budget.best_gpu}-hours"),
        ("Training FLOPs per token", f"{integer(spent.training_flops_per_token)} ({how})"),
    ]
    headings = ("N taken as", "parameters", "tokens per N", "law's optimum, tokens", "× optimum", "predicted loss")
    table = rows_table(f"The scaling law {spent.scaling_law} applied to it", headings)
    for reading in spent.readings:
        table.add_row(
            reading.taken_as,
            integer(reading.parameters),
            decimal(reading.tokens_per_parameter, 2),
            scientific(reading.optimal_tokens),
            Number(f"{reading.tokens_over_optimal:,.3g}", reading.tokens_over_optimal),
            f"{reading.predicted_loss:.5f} *" if reading.extrapolated else decimal(reading.predicted_loss, 5),
        )
    yield facts_table(f"The budget spent on {spent.model}", facts)
    yield table
    if budget.intervals is not None:
        yield _reading_intervals(spent)
    notes = [
        "Law's optimum: the number of tokens for which a model of this size is compute-optimal. More tokens are usual "
        "if the model must be cheap to run; with fewer tokens, a smaller model would reach the same loss for less.",
        "Loss: in nats per token, on the data that the law was fitted to.",
    ]
    if spent.mixture_of_experts:
        notes.append(
            "The model is a mixture of experts. The law was fitted to dense models, so neither N has the meaning that "
            "it has in the law; and the law assumes 6 N FLOPs per token, which is not the cost of this model."
        )
    if any(reading.extrapolated for reading in spent.readings):
        notes.append("* extrapolated beyond the sizes or tokens that the law was fitted to.")
    yield Notes(tuple(notes))


def _reading_intervals(spent: BudgetOnModel) -> Table:
    """The 95 % intervals of what the law says of the model."""
    table = rows_table("95 % intervals", ("N taken as", "law's optimum, tokens", "predicted loss"))
    for reading in spent.readings:
        tokens, loss = reading.optimal_tokens_interval, reading.predicted_loss_interval
        table.add_row(
            reading.taken_as,
            NONE if tokens is None else count_range(tokens),
            NONE if loss is None else loss_range(loss),
        )
    return table
