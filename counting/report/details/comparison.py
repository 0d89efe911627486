"""Tables of several models side by side."""

from collections.abc import Iterator

from counting.cost.comparison import Comparison
from counting.records.conventions import MFU_NOTE, STATES_NOTE
from counting.report.conventions import recipe_in_words, what_states_leave_out
from counting.report.format import NONE, decimal, dollars, integer, optional, percent, shifted
from counting.report.tables import Notes, Part, facts_table, rows_table


def comparison_parts(comparison: Comparison) -> Iterator[Part]:
    """The models side by side, and notes on the settings that they share."""
    gpus = "" if comparison.num_gpus is None else f"{integer(comparison.num_gpus)} "
    title = f"{integer(comparison.tokens)} tokens on {gpus}{comparison.gpu} at {percent(comparison.mfu, 0)} MFU"
    size = ("model", "parameters", "active", "FLOPs per token", "if dense", "saved", "sequence")
    sizes = rows_table(f"Training {title}", size)
    columns = ("GPU-hours", "days", "cost", "× cheapest", "states, GB", "step, GB")
    at_least: list[tuple[str, str]] = []
    bill = rows_table("The bill", ("model", *columns))
    for model in comparison.models:
        sizes.add_row(
            model.model,
            integer(model.total_parameters),
            integer(model.active_parameters),
            integer(model.training_flops_per_token),
            integer(model.training_flops_per_token_if_dense),
            percent(model.saved_by_routing, 1),
            integer(model.sequence_length),
        )
        bill.add_row(
            model.model,
            decimal(model.outcome.gpu_hours, 0),
            optional(model.outcome.days, 1),
            dollars(model.outcome.cost_usd),
            decimal(model.cost_over_cheapest, 2),
            shifted(model.model_state_bytes, 9, places=1),
            NONE if model.step_peak_bytes is None else shifted(model.step_peak_bytes, 9, places=1),
        )
        at_least.append((model.model, integer(model.fewest_gpus)))
    at_least.append(("left out", what_states_leave_out(None)))
    yield from (sizes, bill, facts_table("GPUs at least", at_least))
    recipe = recipe_in_words(comparison.precision, comparison.optimizer, comparison.has_indexer)
    notes = (
        f"The same for all models: {dollars(comparison.price_usd_per_hour)} per {comparison.gpu}-hour, model states of "
        f"{recipe}. FLOPs: the model's own count, with multi-token prediction if it is trained.",
        "If dense: FLOPs per token with every routed expert run for every token, that is 6 more for each inactive "
        "parameter. Saved: the share of these FLOPs that routing saves.",
        MFU_NOTE,
        STATES_NOTE,
        "Step: the peak memory of a training step on one device, without sharding. The JSON document "
        "contains the phases of the step.",
    )
    yield Notes(notes)
