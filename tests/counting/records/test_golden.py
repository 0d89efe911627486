"""Names, units and sentences of all rows, to the letter; of made-up results and of a real model on a real layout."""

from msgspec.structs import replace

from counting.analysis import analyze
from counting.cost.budget import plan_budget
from counting.cost.run import GpuRun, RunPlan, plan_run
from counting.published.runs import Figure
from counting.records.walk import tidy_rows
from counting.setup import Setup
from tests.counting.records.golden import TABLE, lines
from tests.counting.records.made_up import made_up
from tests.shrunken import DEEPSEEK_V3
from torch_models.layout import Layout


def test_every_field_is_called_counted_and_governed_as_written() -> None:
    assert lines() == TABLE.read_text().splitlines()


def test_the_sentence_of_each_convention_of_training_flops() -> None:
    """6N has no attention; full and causal attention are not exchanged."""
    begins = {
        "6N": "Training FLOPs: 6 N. ",
        "6N_full_attention": "Training FLOPs: 6 N' + full attention. ",
        "6N_causal_attention": "Training FLOPs: 6 N' + causal attention. ",
        "own": "Training FLOPs: the model's own count. ",
    }
    for convention, begin in begins.items():
        figure = Figure(quantity="mfu", convention=convention, stated=1.5, ours=2.5, relative_difference=0.5, source="")
        rows = tidy_rows(figure)
        assert [row.scope for row in rows] == [f"mfu, {convention}"] * 3
        assert [row.convention.startswith(begin) for row in rows] == [True] * 3


def test_what_is_none_is_not_named() -> None:
    figure = Figure(quantity="mfu", convention=None, stated=1.5, ours=2.5, relative_difference=0.5, source="")
    assert {row.scope for row in tidy_rows(figure)} == {"mfu"}


def test_a_series_of_three_has_its_middle() -> None:
    """At the slow end of the band, as predicted, at the fast end; of one, as predicted."""
    for mfus, names in (((1.5, 2.5, 3.5), ["slow end", "predicted", "fast end"]), ((1.5,), ["predicted"])):
        run = replace(made_up(GpuRun), predicted_mfus=mfus)
        rows = [row for row in run.to_records() if row.quantity == "predicted_mfu"]
        assert [(row.component, row.value) for row in rows] == list(zip(names, mfus, strict=True))


def test_rows_of_a_real_model_and_run_by_hand() -> None:
    """A few numbers of each part: two stages on 2 GPUs, one of each kind of unit."""
    layout = Layout(num_gpus=2, gpus_per_node=2, pp=2, stage_layers=(3, 1))
    setup = Setup(sequence_length=16, micro_batches=2)
    analysis = analyze(DEEPSEEK_V3, setup, layout=layout)
    run = plan_run(analysis, RunPlan(tokens=10**9, gpus=("H100",), num_gpus=2))
    rows = [*analysis.to_records(), *run.to_records(), *plan_budget(5e6).to_records()]
    named = {row[:3]: (row.unit, row.convention) for row in rows}
    assert [row.value for row in rows if row.quantity == "layers" and " / layout / " in row.scope] == [3, 1]
    for scope, component, quantity, unit, begins in (
        ("config", "total", "parameters", "parameter", "Numbers that the optimiser updates"),
        ("config", "", "active_parameters_without_embedding", "parameter", "Parameters that one token uses"),
        ("config / moe layer", "total", "peak_memory_bytes", "byte", "The worst moment of one layer"),
        ("config / layout / stage 0", "", "layers", "layer", "A setting"),
        ("config / layout / stage 1", "", "layers", "layer", "A setting"),
        ("config / rank 0", "", "hardware_flops", "FLOP", "Hardware FLOPs"),
        ("config / rank 1", "", "model_flops", "FLOP", "Model FLOPs"),
        ("config / H100", "", "price_usd_per_hour", "USD/hour", "USD for one hour"),
        ("budget", "", "gpu_hours", "GPU-hour", "GPU-hours are those of one run"),
        ("budget", "", "optimal_tokens", "token", "The lowest loss"),
    ):
        assert (scope, component, quantity) in named, sorted({row.scope for row in rows})
        given, sentence = named[scope, component, quantity]
        assert (given, sentence[: len(begins)]) == (unit, begins), (scope, quantity)
