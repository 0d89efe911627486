"""Tables of a budget beyond plain compute: repeated tokens, serving, mixtures of experts."""

from collections.abc import Iterator

from counting.cost.beyond_compute import BeyondCompute, DataLimitedBudget, InferenceAwareBudget, MixtureBudget
from counting.cost.scaling_laws import OptimumIntervals
from counting.report.details.laws import count_range, loss_range
from counting.report.format import decimal, integer, percent, readable, scientific, significant, three_digits
from counting.report.tables import Notes, Part, facts_table, rows_table


def beyond_parts(beyond: BeyondCompute) -> Iterator[Part]:
    """What was asked, each for itself."""
    if beyond.data_limited is not None:
        yield from _data_limited_parts(beyond.data_limited)
    if beyond.inference_aware is not None:
        yield from _inference_aware_parts(beyond.inference_aware)
    if beyond.mixture is not None:
        yield from _mixture_parts(beyond.mixture)


def _data_limited_parts(limited: DataLimitedBudget) -> Iterator[Part]:
    best, intervals = limited.optimum, limited.optimum.intervals
    ranges = [] if intervals is None else [("95 % intervals", _ranges(intervals))]
    yield facts_table(
        f"The best model with {readable(best.unique_tokens)} unique tokens, by {limited.scaling_law}",
        [
            ("Parameters", integer(best.parameters)),
            ("Tokens", f"{integer(best.tokens)}, {decimal(best.epochs, 2)} epochs"),
            ("Tokens per parameter", decimal(best.tokens_per_parameter, 2)),
            (
                "Worth as much",
                f"{readable(best.effective_parameters)} on {readable(best.effective_tokens)} unique tokens",
            ),
            ("Predicted loss", f"{best.predicted_loss:.5f} nats per token"),
            *ranges,
            (
                "If every token were new",
                f"{best.unlimited_loss:.5f}; the loss above would take {scientific(best.unlimited_flops)} FLOPs, "
                f"{percent(best.unlimited_share)} of the budget",
            ),
            ("The best model without the limit", f"{best.plain_epochs:,.2f} epochs, {best.plain_loss:.5f}"),
            ("With any compute", f"above {best.lowest_loss:.5f}"),
        ],
    )
    if limited.models:
        headings = ("the budget on", "N taken as", "tokens", "epochs", "predicted loss", "by the law alone")
        table = rows_table("Models whose training repeats these tokens", headings, names=2)
        for model in limited.models:
            table.add_row(
                model.model,
                model.taken_as,
                integer(model.tokens),
                decimal(model.epochs, 2),
                decimal(model.predicted_loss, 5),
                decimal(model.plain_loss, 5),
            )
        yield table
    notes = [
        f"What repeated tokens are worth: {limited.source}, beside one law. With another law it is an assumption that "
        "the worth of a repeated token fades as fast, and that of parameters beyond what the unique tokens can use.",
        "The formula lets loss only level off; in the paper's runs, very many epochs also made it worse.",
    ]
    if best.extrapolated:
        notes.append(
            "Extrapolated: beyond the runs of the law, or 9 billion parameters, 900 billion tokens, 500 epochs."
        )
    yield Notes(tuple(notes))


def _ranges(intervals: OptimumIntervals) -> str:
    """The 95 % intervals of N, D and loss."""
    return (
        f"{count_range(intervals.parameters)} parameters, {count_range(intervals.tokens)} tokens, loss "
        f"{loss_range(intervals.loss)}"
    )


def _inference_aware_parts(aware: InferenceAwareBudget) -> Iterator[Part]:
    optimum = aware.optimum
    served = readable(optimum.inference_tokens)
    headings = ("", "parameters", "tokens", "per N", "loss", "training FLOPs", "serving FLOPs", "serving")
    table = rows_table(f"Training, and serving {served} tokens, by {aware.scaling_law}", headings)
    for name, model in (
        ("best of the budget", optimum.best),
        ("best without serving", optimum.plain),
        ("the same loss, cheapest", optimum.cheapest),
    ):
        table.add_row(
            f"{name} *" if model.extrapolated else name,
            integer(model.parameters),
            integer(model.tokens),
            decimal(model.tokens_per_parameter, 2),
            decimal(model.predicted_loss, 5),
            scientific(model.training_flops),
            scientific(model.inference_flops),
            percent(model.inference_share),
        )
    yield table
    if aware.models:
        of_models = ("the budget on", "serving FLOPs", "of the budget", "tokens of training left")
        models = rows_table(f"Models that are trained, and serve {served} tokens", of_models)
        for one in aware.models:
            models.add_row(one.model, scientific(one.inference_flops), percent(one.share), integer(one.tokens))
        yield models
    notes = [
        f"{aware.source}: C = 6 N D + 2 N I, for N parameters, D tokens of training and I tokens that are read or "
        "written in service. Best of the budget: C is the budget. The best without serving costs the budget in "
        "training alone; the cheapest with its loss costs the least in all.",
        "A FLOP of serving is priced as one of training, at the same utilisation; service that waits for its requests "
        "or writes token by token costs more.",
    ]
    if aware.models:
        notes.append("Of a given model, a token served takes its own forward pass.")
    if optimum.intervals is not None:
        notes.append(f"95 % intervals of the best of the budget: {_ranges(optimum.intervals)}.")
    if any(model.extrapolated for model in (optimum.best, optimum.plain, optimum.cheapest)):
        notes.append("* extrapolated beyond the sizes or tokens that the law was fitted to.")
    yield Notes(tuple(notes))


def _mixture_parts(mixture: MixtureBudget) -> Iterator[Part]:
    best = mixture.optimum
    if best is not None:
        dense = f"{integer(best.dense_parameters)} parameters on {integer(best.dense_tokens)} tokens"
        yield facts_table(
            f"The best mixture of experts at an expansion rate of {best.expansion_rate:g}, by {mixture.scaling_law}",
            [
                ("Active parameters", integer(best.parameters)),
                ("Parameters in total", f"about {readable(best.total_parameters)}, shaped as the runs of the law"),
                ("Tokens", integer(best.tokens)),
                ("Tokens per active parameter", decimal(best.tokens_per_parameter, 2)),
                ("Predicted loss", f"{best.predicted_loss:.5f} nats per token"),
                ("Best dense model, by the same law", f"{dense}: {best.dense_loss:.5f}"),
                (
                    "The mixture's loss, dense",
                    f"{scientific(best.dense_flops)} FLOPs, {three_digits(best.dense_flops_ratio)} × the budget",
                ),
            ],
        )
    if mixture.models:
        headings = ("the budget on", "expansion rate", "active", "tokens", "× optimum", "loss", "dense loss")
        table = rows_table(f"Given mixtures, by {mixture.scaling_law}", headings)
        for model in mixture.models:
            table.add_row(
                model.model,
                significant(model.expansion_rate),
                integer(model.parameters),
                integer(model.tokens),
                decimal(model.tokens_over_optimal, 2),
                decimal(model.predicted_loss, 5),
                decimal(model.dense_loss, 5),
            )
        yield table
    smallest, largest = map(readable, mixture.fitted_parameters)
    fewest, most = map(readable, mixture.fitted_tokens)
    yield Notes(
        (
            f"{mixture.source}: {smallest} to {largest} active parameters, {fewest} to {most} tokens, expansion rates "
            f"of {mixture.fitted_experts[0]:g} to {mixture.fitted_experts[1]:g}, one expert of a layer's size for each "
            "token. Beyond that it is extrapolated. Its loss is on its own data: compare it with its dense loss only.",
            "Expansion rate: feed-forward parameters for each one that a token uses, dense layers and shared experts "
            "included. Smaller experts, of which a token uses several, are known to do better; not in this law.",
            "Dense loss: of a model with as many parameters as are active here, on the same tokens.",
        )
    )
