"""The run, the comparison, and a budget spent on one model, as tables."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from counting.cost.budget import BudgetPlan
from counting.cost.budget_on_model import BudgetOnModel
from counting.cost.comparison import Comparison
from counting.cost.conventions import Convention
from counting.cost.run import GpuRun, TrainingRun
from counting.cost.scaling_laws import find_law
from counting.recipes import find_optimizer, find_precision
from counting.report.format import (
    dollars,
    facts_table,
    integer,
    optional,
    percent,
    print_notes,
    print_tables,
    rows_table,
    scientific,
)

if TYPE_CHECKING:
    from rich.table import Table

CONVENTIONS: dict[Convention, str] = {
    "6N": "6 N",
    "6N_full_attention": "6 N' + full attention",
    "6N_causal_attention": "6 N' + causal attention",
    "own": "the model's own count",
}

MFU_NOTE = (
    "MFU is against the dense peak of the 16-bit training dtype, under the model's own count: three forward passes, "
    "nothing recomputed."
)
STATES_NOTE = (
    "GPUs at least: so many hold parameters, gradients and optimiser state, sharded evenly, one GB of memory taken as "
    "2^30 bytes. A lower bound: activations, buffers and fragments need room too."
)
ENERGY_NOTE = (
    "MWh: GPU-hours x the board's power limit, an upper bound for the boards alone; hosts, network and cooling are not "
    "in it."
)
BILL_NOTE = "GPU-hours of one run that goes well: failed runs, evaluation, storage and people are not in the bill."
CONVENTION_NOTE = (
    "N: active parameters, those one token uses. N': the same without the input embedding, which is looked up. "
    "Causal: half of attention's square. Multi-token prediction is in the model's own count alone."
)


def print_run(run: TrainingRun) -> None:
    """One model's training on each kind of GPU."""
    from rich.markup import escape

    facts = [
        ("Tokens", integer(run.tokens)),
        ("Parameters", _sizes(run.total_parameters, run.active_parameters)),
        ("Training FLOPs per token", f"{integer(run.training_flops_per_token)} ({_counted(run)})"),
        ("Training FLOPs", scientific(run.training_flops)),
    ]
    if run.steps is not None and run.global_batch_tokens is not None:
        facts.append(("Steps", f"{integer(run.steps)} of {integer(run.global_batch_tokens)} tokens"))
    facts.append(("Model states", f"{integer(run.model_state_bytes)} bytes ({_recipe(run.precision, run.optimizer)})"))
    headings = ("GPU", "GPUs", "MFU", "$/hour", "GPU-hours", "days", "tokens/s", "cost", "MWh", "GPUs at least")
    table = rows_table("What it takes", headings)
    for gpu in run.gpus:
        for outcome in gpu.outcomes:
            table.add_row(
                gpu.gpu,
                optional(gpu.num_gpus),
                _utilisation(outcome.mfu, gpu),
                f"{gpu.price_usd_per_hour:,.2f}",
                f"{outcome.gpu_hours:,.0f}",
                optional(outcome.days, 1),
                optional(outcome.tokens_per_second),
                dollars(outcome.cost_usd),
                optional(outcome.energy_mwh),
                integer(gpu.fewest_gpus),
            )
        table.add_section()
    print_tables(facts_table(f"Training {escape(run.model)}", facts), table)
    implied = [gpu for gpu in run.gpus if gpu.implied_mfu]
    if implied:
        print_tables(_implied_table(run, implied))
    notes = []
    if run.sequence_length_source != "seq_len":
        notes.append(
            f"At sequence length {integer(run.sequence_length)} (from {run.sequence_length_source}) the products of "
            f"attention are {percent(run.attention_core_share, 0)} of the model's FLOPs; --seq_len sets the length "
            "that is trained at."
        )
    notes += [MFU_NOTE, STATES_NOTE, BILL_NOTE]
    if run.precision == "fp32":
        notes.append("No GPU multiplies fp32 numbers at its 16-bit peak: the MFU of fp32 is a fraction of the usual.")
    if implied:
        notes.append(CONVENTION_NOTE)
        if any(_is_impossible(entry.mfu, gpu) for gpu in implied for entry in gpu.implied_mfu):
            notes.append(
                "Impossible: more than the GPU's dense peak. If FLOPs are counted so, and the model was trained at "
                "this sequence length, the claim is not true."
            )
    if any(gpu.power_watts for gpu in run.gpus):
        notes.append(ENERGY_NOTE)
    for gpu in run.gpus:
        if gpu.num_gpus is not None and gpu.num_gpus < gpu.fewest_gpus:
            notes.append(
                f"{integer(gpu.num_gpus)} {gpu.gpu} cannot hold the model states: at least "
                f"{integer(gpu.fewest_gpus)} are needed, or a part must move to the hosts."
            )
    print_notes(notes)


def _utilisation(mfu: float, gpu: GpuRun) -> str:
    """An MFU, and where it is above 1 whether it can be."""
    if mfu <= 1:
        return percent(mfu)
    return f"{percent(mfu)}, {'impossible' if _is_impossible(mfu, gpu) else 'in FP8'}"


def _is_impossible(mfu: float, gpu: GpuRun) -> bool:
    return mfu * gpu.peak_dense_tflop_per_s > gpu.attainable_tflop_per_s


def _implied_table(run: TrainingRun, gpus: Sequence[GpuRun]) -> "Table":
    headings = ("GPU", "convention", "FLOPs per token", "training FLOPs", "TFLOP/s per GPU", "MFU")
    table = rows_table(f"What {run.published_gpu_hours:,.0f} GPU-hours imply", headings, names=2)
    for gpu in gpus:
        for entry in gpu.implied_mfu:
            table.add_row(
                gpu.gpu,
                CONVENTIONS[entry.convention],
                integer(entry.training_flops_per_token),
                scientific(entry.training_flops or 0),
                f"{entry.tflop_per_s:,.1f}",
                _utilisation(entry.mfu, gpu),
            )
        table.add_section()
    return table


def print_comparison(comparison: Comparison) -> None:
    """Models side by side, and below what they have in common."""
    gpus = "" if comparison.num_gpus is None else f"{integer(comparison.num_gpus)} "
    title = f"{integer(comparison.tokens)} tokens on {gpus}{comparison.gpu} at {percent(comparison.mfu, 0)} MFU"
    size = ("model", "parameters", "active", "FLOPs per token", "if dense", "saved", "sequence")
    sizes = rows_table(f"Training {title}", size)
    columns = ("GPU-hours", "days", "cost", "× cheapest", "states, GB", "step, GB", "GPUs at least")
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
            f"{model.outcome.gpu_hours:,.0f}",
            optional(model.outcome.days, 1),
            dollars(model.outcome.cost_usd),
            f"{model.cost_over_cheapest:.2f}",
            f"{model.model_state_bytes / 10**9:,.1f}",
            optional(None if model.step_peak_bytes is None else model.step_peak_bytes / 10**9, 1),
            integer(model.fewest_gpus),
        )
    print_tables(sizes, bill)
    notes = [
        f"The same for all: {dollars(comparison.price_usd_per_hour)} per {comparison.gpu}-hour, model states of "
        f"{_recipe(comparison.precision, comparison.optimizer)}. FLOPs are the model's own count, with multi-token "
        "prediction where it is trained.",
        "If dense: every routed expert run for every token, 6 FLOPs per token for each parameter that a token does not "
        "visit. Saved: what routing saves of that.",
        MFU_NOTE,
        STATES_NOTE,
        "Step: the peak of a training step over one sequence on one device, nothing sharded; --json has its phases.",
    ]
    if len({model.sequence_length for model in comparison.models}) > 1:
        notes.append("The models are at different sequence lengths; --seq_len sets one for all.")
    print_notes(notes)


def print_budget_on_model(spent: BudgetOnModel, plan: BudgetPlan) -> None:
    """The budget spent on one model, beside the scaling law's word on it."""
    from rich.markup import escape

    law = find_law(spent.scaling_law)
    facts = [
        ("Tokens", f"{integer(spent.tokens)} in {plan.gpu_hours:,.0f} {plan.best_gpu}-hours"),
        ("Training FLOPs per token", f"{integer(spent.training_flops_per_token)} ({_counted(spent)})"),
    ]
    headings = ("N taken as", "parameters", "tokens per N", "law's optimum, tokens", "× optimum", "predicted loss")
    table = rows_table(f"The scaling law {law.name} on it", headings)
    for reading in spent.readings:
        table.add_row(
            reading.taken_as,
            integer(reading.parameters),
            f"{reading.tokens_per_parameter:,.2f}",
            scientific(reading.optimal_tokens),
            f"{reading.tokens_over_optimal:,.3g}",
            f"{reading.predicted_loss:.5f}" + (" *" if reading.extrapolated else ""),
        )
    print_tables(facts_table(f"The budget spent on {escape(spent.model)}", facts), table)
    notes = [
        "Law's optimum: the tokens for which a model of this size is the best one. More of them is what is done for a "
        "model that is cheap to run; fewer, and a smaller model would reach the same loss for less.",
        "Loss in nats per token, on the data that the law was fitted to.",
    ]
    if spent.mixture_of_experts:
        notes.append(
            "A mixture of experts: the law was fitted to dense models, so neither N is what it means by one, and it "
            "takes a token to cost 6 N FLOPs, which this model's do not."
        )
    if any(reading.extrapolated for reading in spent.readings):
        notes.append("* beyond the sizes or tokens that the law was fitted to.")
    print_notes(notes)


def _sizes(total: int, active: int) -> str:
    return integer(total) if active == total else f"{integer(total)}, of which {integer(active)} active for one token"


def _counted(counted: TrainingRun | BudgetOnModel) -> str:
    """How the model's own count was had."""
    length = f"at sequence length {integer(counted.sequence_length)}"
    if isinstance(counted, TrainingRun):
        length += f", from {counted.sequence_length_source}"
    return f"3 × the forward pass {length}" + (", with multi-token prediction" if counted.mtp_trained else "")


def _recipe(precision: str, optimizer: str) -> str:
    moments = find_optimizer(optimizer).moments
    return f"{precision}, {optimizer}: {find_precision(precision).state_bytes(moments)} bytes per parameter"
