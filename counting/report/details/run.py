"""Tables of one model's training run."""

from collections.abc import Iterator, Sequence

from counting.cost.run import GpuRun, TrainingRun
from counting.records.conventions import (
    BILL_NOTE,
    CONVENTION_NOTE,
    ENERGY_NOTE,
    FLOP_CONVENTIONS,
    MFU_NOTE,
    STATES_NOTE,
)
from counting.report.conventions import how_counted, parameter_sizes, recipe_in_words, what_states_leave_out
from counting.report.format import decimal, dollars, integer, length_source, optional, percent, scientific
from counting.report.tables import Notes, Part, Table, facts_table, rows_table


def run_parts(run: TrainingRun) -> Iterator[Part]:
    """The tables of one model's training on each kind of GPU."""
    length = f"sequence length {integer(run.sequence_length)}"
    source = length_source(run.sequence_length_source)
    how = how_counted(f"{length}, {source}", run.mtp_trained, run.has_indexer)
    facts = [
        ("Tokens", integer(run.tokens)),
        ("Parameters", parameter_sizes(run.total_parameters, run.active_parameters)),
        (
            "Training FLOPs per token",
            f"{integer(run.training_flops_per_token)} ({how})",
        ),
        ("Training FLOPs", scientific(run.training_flops)),
    ]
    if run.steps is not None and run.global_batch_tokens is not None:
        facts.append(("Steps", f"{integer(run.steps)} of {integer(run.global_batch_tokens)} tokens"))
    recipe = recipe_in_words(run.precision, run.optimizer, run.has_indexer)
    facts.append(("Model states", f"{integer(run.model_state_bytes)} bytes ({recipe})"))
    counts = ", ".join(f"{integer(gpu.fewest_gpus)} {gpu.gpu}" for gpu in run.gpus)
    facts.append(
        ("GPUs at least", f"{counts}; left out: {what_states_leave_out(run.beside_states_bytes, run.update_bytes)}")
    )
    headings = ("GPU", "MFU", "GPUs", "$/hour", "GPU-hours", "days", "tokens/s", "cost", "MWh")
    table = rows_table("Time, cost and energy", headings, names=2)
    for gpu in run.gpus:
        for outcome in gpu.outcomes:
            table.add_row(
                gpu.gpu,
                f"{_utilisation(outcome.mfu, gpu)}, predicted"
                if outcome.mfu_source == "predicted"
                else _utilisation(outcome.mfu, gpu),
                optional(gpu.num_gpus),
                decimal(gpu.price_usd_per_hour, 2),
                decimal(outcome.gpu_hours, 0),
                optional(outcome.days, 1),
                optional(outcome.tokens_per_second),
                dollars(outcome.cost_usd),
                optional(outcome.energy_mwh),
            )
        table.add_section()
    yield facts_table(f"Training {run.model}", facts)
    yield table
    implied = [gpu for gpu in run.gpus if gpu.implied_mfu]
    if implied:
        yield _implied_table(run, implied)
    notes = []
    if run.sequence_length_source != "given":
        notes.append(
            f"At {length} ({source}) the products of attention are {percent(run.attention_core_share, 0)} of the "
            "model's FLOPs; give the sequence length of the training run if it is another."
        )
    notes += [MFU_NOTE, STATES_NOTE, BILL_NOTE]
    if run.precision == "fp32":
        notes.append("No GPU multiplies fp32 numbers at its 16-bit peak: expect only a fraction of the usual MFU.")
    if implied:
        notes.append(CONVENTION_NOTE)
        if any(is_above_the_peak(entry.mfu, gpu) for gpu in implied for entry in gpu.implied_mfu):
            notes.append(
                "Above the peak: this convention counts more FLOPs than the GPU can compute in that time, for example "
                "attention's full square, of which a causal kernel computes half."
            )
    if any(gpu.power_watts for gpu in run.gpus):
        notes.append(ENERGY_NOTE)
    if without := [gpu.gpu for gpu in run.gpus if gpu.step_fits is False]:
        notes.append(f"A step of the layout does not fit {', '.join(without)} as it is: no such run is possible.")
    for gpu in run.gpus:
        if gpu.num_gpus is not None and gpu.num_gpus < gpu.fewest_gpus:
            notes.append(
                f"{integer(gpu.num_gpus)} {gpu.gpu} cannot hold the model states: at least "
                f"{integer(gpu.fewest_gpus)} are needed, or a part must be kept in host memory."
            )
    yield Notes(tuple(notes))


def _utilisation(mfu: float, gpu: GpuRun) -> str:
    """The MFU in percent; above 100 % with "above the peak" or "in FP8"."""
    if mfu <= 1:
        return percent(mfu)
    return f"{percent(mfu)}, {'above the peak' if is_above_the_peak(mfu, gpu) else 'in FP8'}"


def is_above_the_peak(mfu: float, gpu: GpuRun) -> bool:
    """Whether the MFU needs more FLOP/s than the dense peak in the format of the matrix products."""
    return mfu * gpu.peak_dense_tflop_per_s > gpu.attainable_tflop_per_s


def _implied_table(run: TrainingRun, gpus: Sequence[GpuRun]) -> Table:
    headings = ("GPU", "convention", "FLOPs per token", "training FLOPs", "TFLOP/s per GPU", "MFU")
    if run.tokens_per_second_per_gpu is not None:
        given = f"{run.tokens_per_second_per_gpu:,g} tokens per second and GPU"
    else:
        given = f"{run.published_gpu_hours:,.0f} GPU-hours"
    table = rows_table(f"What {given} imply", headings, names=2)
    for gpu in gpus:
        for entry in gpu.implied_mfu:
            table.add_row(
                gpu.gpu,
                FLOP_CONVENTIONS[entry.convention],
                integer(entry.training_flops_per_token),
                scientific(entry.training_flops or 0),
                decimal(entry.tflop_per_s, 1),
                _utilisation(entry.mfu, gpu),
            )
        table.add_section()
    return table
