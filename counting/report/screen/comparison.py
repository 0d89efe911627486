"""Several models side by side on the first screen."""

from collections.abc import Sequence

from counting.analysis import Analysis
from counting.cost.comparison import ComparedModel, Comparison
from counting.report.conventions import recipe_in_words, what_states_leave_out
from counting.report.format import (
    FLOP_UNITS,
    Bytes,
    dollars,
    integer,
    percent,
    readable,
    readable_dollars,
    short_percent,
)
from counting.report.screen.lines import Lines
from counting.report.screen.model import length_said_by
from counting.report.screen.run import LEFT_OUT


def comparison_screen(lines: Lines, comparison: Comparison, analyses: Sequence[Analysis]) -> None:
    """Add a row for each model, and the settings that they share."""
    models = comparison.models
    gpus = "" if comparison.num_gpus is None else f"{integer(comparison.num_gpus)} "
    lines.heading(
        f"Training on {readable(comparison.tokens)} tokens with {gpus}{comparison.gpu} at "
        f"{short_percent(comparison.mfu)} MFU and {dollars(comparison.price_usd_per_hour)} an hour"
    )
    rows = [("model", "size", "active", "a token", "GPU-hours", "days", "cost", "×")]
    lines.columns([*rows, *map(_row, models)])
    routed = [model for model in models if model.saved_by_routing]
    if routed:
        saved = ", ".join(f"{model.model} {percent(model.saved_by_routing, 1)}" for model in routed)
        lines.fact("routing saves", f"{saved} of the FLOPs of running every expert for every token")
    lines.fact("GPUs at least", _fewest(models, comparison))
    said_by = length_said_by(analyses[0])
    smallest = "" if said_by == "given" else f"the smallest default of these models, {said_by}"
    lines.fact("sequences", f"of {integer(models[0].sequence_length)} tokens for all; {smallest or said_by}")
    lines.fact("not in the bill", LEFT_OUT)


def _row(model: ComparedModel) -> tuple[str, ...]:
    return (
        model.model,
        readable(model.total_parameters),
        "" if model.active_parameters == model.total_parameters else readable(model.active_parameters),
        readable(model.training_flops_per_token, FLOP_UNITS),
        readable(model.outcome.gpu_hours),
        "" if model.outcome.days is None else f"{model.outcome.days:,.1f}",
        readable_dollars(model.outcome.cost_usd),
        f"{model.cost_over_cheapest:.2f}",
    )


def _fewest(models: Sequence[ComparedModel], comparison: Comparison) -> str:
    """For each model, how many GPUs hold the model states; and the memory that is not included."""
    counts = "; ".join(
        f"{model.model} {integer(model.fewest_gpus)} ({Bytes(model.model_state_bytes)(model.model_state_bytes)})"
        for model in models
    )
    recipe = recipe_in_words(comparison.precision, comparison.optimizer, comparison.has_indexer)
    return f"{counts}: hold the model states ({recipe}); left out: {what_states_leave_out(None)}"
