"""The log of two steps of a whole model, against what one layer of each kind, extended to all, says."""

from typing import Any

import pytest

from counting.allocator.events import Allocate, Free
from counting.measurements.allocations import log_of_step
from counting.setup import resolve
from tests.counting.measurements.allocation_logs import (
    allocations,
    peak_of_step,
    requested_at_marks,
    without_workspaces,
)
from tests.counting.measurements.rank_runs import resolved
from tests.shrunken import FAMILIES
from tests.witnesses import measured, memory_of
from torch_models.builder import build_model_with_loss
from torch_models.fields.config import spec_from_fields
from torch_models.spec import ModelSpec

RUNS: list[dict[str, Any]] = [
    {},
    {"micro_batches": 3, "recompute": "full"},
    {"recompute": "per_op", "clip_gradients": True},
    {"precision": "mixed-fp32-gradients", "optimizer": "adamw-foreach", "micro_batches": 2},
    {"precision": "bf16", "optimizer": "adamw-foreach", "loss_chunk": 8, "zero_gradients": "in_place"},
    {"precision": "fp32", "optimizer": "sgd-momentum", "kernels": "eager", "micro_batch_size": 2},
    {"optimizer": "adafactor", "recompute": "selective", "kernels": "eager"},
    {"precision": "bf16", "optimizer": "adafactor"},
    {"optimizer": "sgd"},
]


def counters(spec: ModelSpec, optimizer: str) -> int:
    """Step counts on the device, which the memory of a step leaves out: 4 bytes a tensor, of fused AdamW alone."""
    if optimizer != "adamw":
        return 0
    model = build_model_with_loss(spec, device="meta", mtp=bool(spec.mtp_layers))
    return 4 * len(list(model.parameters()))


@pytest.mark.parametrize("run", RUNS, ids=str)
@pytest.mark.parametrize("family", ["llama", "deepseek_v3", "gemma2"])
def test_the_second_step_peaks_as_its_memory_says(family: str, run: dict[str, Any]) -> None:
    spec = spec_from_fields(FAMILIES[family], family)
    compare(spec, run | {"sequence_length": 24})


@pytest.mark.sweep
@pytest.mark.parametrize("run", RUNS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_peaks_so(family: str, run: dict[str, Any]) -> None:
    compare(spec_from_fields(FAMILIES[family] | {"num_hidden_layers": 5}, family), run | {"sequence_length": 40})


def compare(spec: ModelSpec, options: dict[str, Any]) -> None:
    from counting.setup import Setup

    setup = resolve(Setup(**options), spec)
    events = without_workspaces(log_of_step(spec, setup))
    memory = memory_of(spec, measured(spec, **options), **options)
    assert peak_of_step(events, 2) == memory.peak_bytes + counters(spec, setup.optimizer)


def test_the_second_step_leaves_what_the_first_left() -> None:
    setup = resolved(LLAMA, sequence_length=32)
    at = requested_at_marks(log_of_step(LLAMA, setup))
    assert at["update of step 1"][0] == at["update of step 2"][0]
    assert peak_of_step(log_of_step(LLAMA, setup), 1) < peak_of_step(log_of_step(LLAMA, setup), 2)


LLAMA = spec_from_fields(FAMILIES["llama"], "llama")


def test_more_micro_batches_are_like_the_second() -> None:
    few, many = (log_of_step(LLAMA, resolved(LLAMA, sequence_length=32, micro_batches=n)) for n in (2, 7))
    assert [event for event in few if isinstance(event, Allocate | Free)] == [
        event for event in many if isinstance(event, Allocate | Free)
    ]


def test_parameters_come_first_and_in_order() -> None:
    spec = spec_from_fields(FAMILIES["deepseek_v3"], "deepseek_v3")
    setup = resolved(spec, sequence_length=24, precision="bf16")
    model = build_model_with_loss(spec, device="meta", mtp=False)
    parameters = list(model.parameters())
    first = list(allocations(log_of_step(spec, setup)))[: len(parameters)]
    biases = [buffer.nbytes for buffer in model.buffers()]
    assert [event.name for event in first] == ["parameter"] * len(first)
    held = [2 * p.numel() for p in parameters]
    assert sorted(e.bytes for e in list(allocations(log_of_step(spec, setup))) if e.name == "parameter") == sorted(
        [*held, *biases]
    )


def test_workspaces_of_kernels() -> None:
    """CuBLAS's at the first product of either pass, for good; those of flash attention in each backward pass."""
    spec = spec_from_fields(FAMILIES["qwen3"], "qwen3")
    events = log_of_step(spec, resolved(spec, sequence_length=32))
    sizes = [event.bytes for event in allocations(events) if event.name == "workspace"]
    query_heads = 8
    sums, queries = 4 * query_heads * 128, 4 * query_heads * 128 * 32  # rows rounded up to 128, channels to 32
    expanded = 2 * query_heads * 32 * 16
    of_layer = [sums, queries, expanded, expanded]
    assert sizes == [32 * 2**20, 32 * 2**20, *of_layer * spec.num_layers * 2]
    kept = {event.key for event in allocations(events)} - {e.key for e in events if isinstance(e, Free)}
    assert [e.bytes for e in allocations(events) if e.key in kept and e.name == "workspace"] == [32 * 2**20] * 2
