"""The log of a pipeline's rank: its peaks are those of the rank's memory, of every schedule."""

from typing import Any

import pytest

from counting.layout import data_ranks_of, resolve_layout
from counting.measurements.ranks import log_of_rank, measure_pipeline
from counting.ranks.result import pipeline_classes
from counting.setup import Setup, resolve
from tests.counting.measurements.allocation_logs import allocations, peak_of_step, without_workspaces
from tests.shrunken import FAMILIES
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout
from torch_models.stages import stages_of

SMALL: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"pp": 2}, {"micro_batches": 9}),
]
OTHERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"pp": 2}, {"micro_batches": 2}),
    ({"pp": 2, "schedule": "zbv"}, {"micro_batches": 14}),
    ({"pp": 4, "fsdp": 2}, {"micro_batches": 12, "recompute": "full"}),
    ({"pp": 2, "schedule": "interleaved"}, {"micro_batches": 12}),
    ({"pp": 2, "schedule": "zbv"}, {"micro_batches": 4}),
    ({"pp": 2, "fsdp": 2, "schedule": "dualpipev"}, {"micro_batches": 14}),
    ({"pp": 2, "schedule": "zb"}, {"micro_batches": 14}),
    ({"pp": 2, "schedule": "gpipe", "tp": 2}, {"micro_batches": 3}),
    ({"pp": 2, "schedule": "gpipe"}, {"micro_batches": 9}),
    ({"pp": 2, "cp": 2}, {"micro_batches": 3}),
]


def compare(axes: dict[str, Any], options: dict[str, Any], family: str = "llama") -> None:
    """Of each class of ranks; SGD has no step counts, which the memory of a step leaves out."""
    spec = spec_from_fields(FAMILIES[family] | {"num_hidden_layers": 8}, family)
    layout = Layout(**axes)
    setup = resolve(Setup(sequence_length=40, optimizer="sgd", **options), spec, data_ranks=data_ranks_of(layout))
    layout = resolve_layout(layout, spec, setup)
    classes = pipeline_classes(stages_of(spec, layout), setup, measure_pipeline(spec, setup, layout), "measured")
    assert len(classes) >= layout.pp
    for each in classes:
        rank = each.first_rank + each.context_rank * layout.tp
        events = without_workspaces(log_of_rank(spec, setup, layout, rank))
        assert peak_of_step(events, 2) == each.memory.peak_bytes


@pytest.mark.parametrize(("axes", "options"), SMALL, ids=str)
def test_the_second_step_peaks_as_the_rank_does(axes: dict[str, Any], options: dict[str, Any]) -> None:
    compare(axes, options)


@pytest.mark.sweep
@pytest.mark.parametrize(("axes", "options"), OTHERS, ids=str)
def test_every_schedule_peaks_so(axes: dict[str, Any], options: dict[str, Any]) -> None:
    compare(axes, options)


@pytest.mark.sweep
def test_experts_and_multi_token_prediction() -> None:
    compare({"pp": 2, "fsdp": 2, "ep": 2}, {"micro_batches": 3, "mtp": True}, "deepseek_v3")


def test_a_stage_allocates_what_it_has_alone() -> None:
    """The first stage has the embedding, the last one the head; each half of the layers."""
    spec = spec_from_fields(FAMILIES["llama"] | {"num_hidden_layers": 4}, "llama")
    setup = resolve(Setup(sequence_length=40, micro_batches=2, precision="bf16"), spec)
    layout = resolve_layout(Layout(pp=2), spec, setup)
    of_layers = 2 * 2 * (4 * 64 * 64 + 3 * 64 * 112 + 2 * 64)
    vocabulary = 2 * 96 * 64
    for rank, outside in ((0, vocabulary), (1, vocabulary + 2 * 64)):
        events = log_of_rank(spec, setup, layout, rank)
        assert sum(each.bytes for each in allocations(events) if each.name == "parameter") == of_layers + outside
