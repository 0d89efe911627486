"""The log of a rank: its peaks are those of the rank's memory, and each allocation has its stream."""

from collections import Counter
from typing import Any

import pytest

from counting.allocator.events import Allocate, Free
from counting.measurements.ranks import log_of_rank
from counting.measurements.ranks.optimizer import stored_precision
from tests.counting.measurements.allocation_logs import (
    allocations,
    peak_of_step,
    requested_at_marks,
    without_workspaces,
)
from tests.counting.measurements.rank_runs import layout_of, resolved, run_layout
from tests.shrunken import FAMILIES
from torch_models.builder import build_model_with_loss
from torch_models.fields.config import spec_from_fields

LAYOUTS: list[dict[str, Any]] = [
    {"fsdp": 4},
    {"fsdp": 3, "zero": 2},
    {"fsdp": 4, "zero": 1, "grouping": "torchtitan"},
    {"dp": 2, "fsdp": 2, "grouping": "torchtitan"},
    {"tp": 2},
    {"dp": 2, "fsdp": 2, "tp": 2},
    {"fsdp": 2, "ep": 2, "grouping": "torchtitan"},
    {"dp": 2, "fsdp": 4, "ep": 2, "zero": 2},
    {"cp": 2},
    {"cp": 2, "fsdp": 2, "grouping": "torchtitan"},
]
RUNS: list[dict[str, Any]] = [
    {},
    {"micro_batches": 4, "recompute": "full"},
    {"micro_batches": 2, "precision": "bf16", "loss_chunk": 16, "optimizer": "adamw-foreach"},
]
# What each stream makes: only fully_shard has streams beside the one of the modules.
STREAMS = [
    ({"tp": 2}, {"main"}),
    ({"fsdp": 4}, {"main", "all_gather_copy_in", "reduce_scatter"}),
    ({"dp": 2, "fsdp": 2}, {"main", "all_gather_copy_in", "reduce_scatter"}),
]


def compare(family: str, axes: dict[str, Any], run: dict[str, Any]) -> None:
    wider = {"mixtral": {"intermediate_size": 48}, "deepseek_v3": {"moe_intermediate_size": 32}}
    spec = spec_from_fields(FAMILIES[family] | wider.get(family, {}) | {"num_hidden_layers": 5}, family)
    layout = layout_of(**axes)
    length = 256 if family == "deepseek_v3" and layout.cp > 1 else 40  # by the rule of its kernel
    setup = resolved(spec, sequence_length=length, **run)
    events = without_workspaces(log_of_rank(spec, setup, layout, 0))
    counters = 0
    if setup.optimizer == "adamw" and not layout.is_sharded:  # under fully_shard the moments have them
        counters = 4 * len(list(build_model_with_loss(spec, device="meta", mtp=False).parameters()))
    memory = run_layout(spec, layout, sequence_length=length, **run).memory
    assert peak_of_step(events, 2) == memory.peak_bytes + counters


@pytest.mark.parametrize(
    ("family", "axes", "run"),
    [("llama", axes, RUNS[index % 2]) for index, axes in enumerate(LAYOUTS) if "ep" not in axes]
    + [("deepseek_v3", axes, RUNS[1]) for axes in LAYOUTS if "ep" in axes],
    ids=str,
)
def test_the_second_step_peaks_as_the_rank_does(family: str, axes: dict[str, Any], run: dict[str, Any]) -> None:
    compare(family, axes, run)


@pytest.mark.sweep
@pytest.mark.parametrize("run", RUNS, ids=str)
@pytest.mark.parametrize("axes", LAYOUTS, ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen3", "deepseek_v3", "mixtral"])
def test_every_layout_peaks_so(family: str, axes: dict[str, Any], run: dict[str, Any]) -> None:
    if "ep" in axes and family in ("llama", "qwen3"):
        pytest.skip("it has no experts")
    compare(family, axes, run)


LLAMA = spec_from_fields(FAMILIES["llama"], "llama")


@pytest.mark.parametrize(("axes", "streams"), STREAMS, ids=lambda given: " ".join(sorted(given)))
def test_streams(axes: dict[str, Any], streams: set[str]) -> None:
    events = log_of_rank(LLAMA, resolved(LLAMA, sequence_length=40), layout_of(**axes), 0)
    assert {event.stream for event in allocations(events)} == streams


def test_clipping_allocates_norms_and_four_copies_of_them() -> None:
    """In each of two steps, of 30 gradients in fp32: norms; the stack of these, squares, sums, roots; and the total.

    Then that and 1e-6, its inverse, its product with the norm that is allowed, and the factor, at most 1.
    """

    def sizes(*, clips: bool) -> Counter[int]:
        setup = resolved(LLAMA, sequence_length=40, clip_gradients=clips)
        return Counter(event.bytes for event in allocations(log_of_rank(LLAMA, setup, layout_of(fsdp=4), 0)))

    assert sizes(clips=True) - sizes(clips=False) == Counter({4: 2 * (30 + 1 + 4), 4 * 30: 2 * 4})


def test_what_the_streams_of_fully_shard_make() -> None:
    """Gathered parameters go through a buffer of all ranks' shards; whole gradients through one of their numbers."""
    spec = spec_from_fields(FAMILIES["llama"] | {"num_hidden_layers": 2}, "llama")
    setup = resolved(spec, sequence_length=40, precision="fp32")
    events = log_of_rank(spec, setup, layout_of(fsdp=4), 0)
    of_layer = 4 * (4 * 64 * 64 + 3 * 64 * 112 + 2 * 64)
    outside = 4 * (2 * 96 * 64 + 64)
    gathered = [e.bytes for e in allocations(events) if e.stream == "all_gather_copy_in"]
    reduced = [e.bytes for e in allocations(events) if e.stream == "reduce_scatter"]
    assert {of_layer, outside} <= set(gathered)
    assert {of_layer // 4, outside // 4} <= set(reduced)
    assert max(gathered) == max(of_layer, outside)
    assert stored_precision(setup, layout_of(fsdp=4)).name == "fp32"


def test_a_gathered_parameter_is_another_block_each_time() -> None:
    """`fully_shard` frees it by a resize to 0, and gathers it into the storage again."""
    events = log_of_rank(LLAMA, resolved(LLAMA, sequence_length=40), layout_of(fsdp=4), 0)
    again = [event for event in allocations(events) if event.name == "resize" and event.bytes]
    assert len(again) > 2 * LLAMA.num_layers
    keys = [event.key for event in allocations(events)]
    assert len(set(keys)) == len(keys)


def test_a_rank_leaves_what_the_step_before_left() -> None:
    events = log_of_rank(LLAMA, resolved(LLAMA, sequence_length=40, micro_batches=3), layout_of(fsdp=4, zero=1), 0)
    at = requested_at_marks(events)
    assert at["update of step 1"][0] == at["update of step 2"][0]


def test_more_micro_batches_are_like_those_that_are_run() -> None:
    few, many = (
        log_of_rank(LLAMA, resolved(LLAMA, sequence_length=40, micro_batches=n), layout_of(fsdp=4, zero=1), 0)
        for n in (3, 8)
    )
    assert [e for e in few if isinstance(e, Allocate | Free)] == [e for e in many if isinstance(e, Allocate | Free)]
