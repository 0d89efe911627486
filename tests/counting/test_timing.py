"""The work of a step is measured once; and how long measured steps take: what holds whatever the rates are."""

import json
from typing import Any

import pytest
from msgspec import structs

from counting.cost.cluster import Cluster
from counting.cost.hardware import find_gpu
from counting.layout import resolve_step
from counting.measurements.ranks.fake_world import fake_world
from counting.setup import Setup
from counting.timing import executed_flops, step_times, timed_step, trace_of_step, work_of_step
from tests.counting.cost.hand_made import TERA, pipeline_step, sharded_step
from tests.counting.measurements.rank_runs import layout_of, resolved
from tests.shrunken import DEEPSEEK_V3, LLAMA
from torch_models import read_spec
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout
from torch_models.recomputed_layers import with_recompute

SPEC = spec_from_fields(LLAMA, "llama")
SETUP = resolved(SPEC, sequence_length=24)
H100 = Cluster(gpu=find_gpu("H100"))
DEEP = LLAMA | {"num_hidden_layers": 8}
WITH_PREDICTION = DEEPSEEK_V3 | {"num_hidden_layers": 6, "num_nextn_predict_layers": 1}


def test_work_is_measured_once() -> None:
    again = structs.replace(SPEC), structs.replace(SETUP)
    assert work_of_step(SPEC, SETUP) is work_of_step(*again)
    assert work_of_step(SPEC, SETUP, layout_of(fsdp=2)) is work_of_step(*again, layout_of(fsdp=2))


def test_executed_flops_by_hand() -> None:
    """A micro-batch has 4 + 4 + 5 + 8 + 8 = 29 TFLOP on each of two ranks; of 10 three are in the order."""
    assert executed_flops(sharded_step(micro_batches=10), Layout(dp=1, fsdp=2)) == 2 * 10 * 29 * TERA
    assert executed_flops(sharded_step(micro_batches=2), None) == 2 * 29 * TERA
    # 2 stages of 3 TFLOP, 4 micro-batches, 8 ranks each; a stage's order may leave micro-batches out.
    layout = Layout(dp=2, fsdp=4, pp=2)
    assert executed_flops(pipeline_step(2, 4), layout) == 8 * 2 * 4 * 3 * TERA
    assert executed_flops(structs.replace(pipeline_step(2, 4), micro_batches=9), layout) == 8 * 2 * 9 * 3 * TERA


def test_all_of_the_square_of_attention_is_executed_whatever_ring_attention_skips() -> None:
    """The ranks of cp together have the FLOPs of one device; of each rank's work (c + 1) / 2c of attention's."""
    setup = structs.replace(SETUP, recompute="selective")
    work = work_of_step(SPEC, setup, layout_of(cp=4))
    assert executed_flops(work, layout_of(cp=4)) == executed_flops(work_of_step(SPEC, setup), None)
    assert executed_flops(work, layout_of(cp=4)) > 4 * executed_flops(work, None)


def test_hfu_has_the_flops_as_executed() -> None:
    """Of all ranks, over all ranks and the peak: 989 TFLOP/s."""
    given = Setup(sequence_length=24)
    setup, layout, time = timed_step(SPEC, given, layout_of(fsdp=2), H100, forward_flops=10**6, forward_only=0)
    executed = executed_flops(work_of_step(SPEC, setup, layout), layout)
    assert time.hfu == pytest.approx(executed / 2 / time.seconds / 989e12, rel=1e-12)


def test_layers_say_what_is_recomputed_of_them_before_their_work_is_measured() -> None:
    setup = resolved(SPEC, sequence_length=24, recompute=2)
    assert work_of_step(SPEC, setup) is work_of_step(with_recompute(SPEC, 2), setup)
    every, none = (work_of_step(SPEC, structs.replace(setup, recompute=way)) for way in ("full", "none"))
    flops = [executed_flops(work, None) for work in (none, work_of_step(SPEC, setup), every)]
    assert flops[1] - flops[0] == len(SPEC.layers) // 2 * (flops[2] - flops[0]) // len(SPEC.layers) > 0


def test_work_is_measured_in_another_process() -> None:
    """If this one has a process group."""
    layout = layout_of(fsdp=2, zero=1)
    here = work_of_step(SPEC, SETUP, layout)
    with fake_world(3):
        assert work_of_step(structs.replace(SPEC, name="again"), SETUP, layout) == here  # under another name, again


@pytest.mark.parametrize(
    ("config", "layout", "micro_batches", "axes"),
    [
        (LLAMA, Layout(num_gpus=8, fsdp=4, dp=2), 3, {"fsdp", "dp"}),
        (LLAMA, Layout(num_gpus=16, fsdp=2, tp=4, cp=2), 1, {"fsdp", "tp", "cp"}),
        (DEEPSEEK_V3, Layout(num_gpus=8, fsdp=8, ep=4), 2, {"fsdp", "expert_fsdp", "ep"}),
        (DEEP, Layout(num_gpus=8, pp=4, tp=2, schedule="interleaved"), 8, {"tp", "pp"}),
        (DEEP, Layout(num_gpus=8, pp=4, fsdp=2, schedule="zb"), 8, {"fsdp", "pp"}),
        (DEEP, Layout(num_gpus=2, pp=2, schedule="dualpipev"), 6, {"pp"}),
        (WITH_PREDICTION, Layout(num_gpus=2, pp=2), 4, {"pp"}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_every_layout_has_a_time(config: dict[str, Any], layout: Layout, micro_batches: int, axes: set[str]) -> None:
    spec = read_spec(config)
    setup, layout = resolve_step(layout, spec, Setup(sequence_length=64, micro_batches=micro_batches))
    (time,) = step_times(spec, setup, layout, [H100], forward_flops=10**6, forward_only=0)
    assert 0 < time.bound_seconds <= time.low_seconds <= time.seconds <= time.high_seconds
    assert time.breakdown.total == time.seconds
    assert {axis for axis, seconds in time.breakdown.communication.items() if seconds} <= axes
    assert bool(time.breakdown.bubble) is ("pp" in axes)
    trace = json.loads(trace_of_step(spec, setup, layout, H100).document)
    end = max(event["ts"] + event["dur"] for event in trace["traceEvents"] if event["ph"] == "X")
    assert end == pytest.approx(time.seconds * 1e6, rel=1e-3)
