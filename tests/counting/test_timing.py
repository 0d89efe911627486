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
from counting.timing import executed_flops, step_times, trace_of_step, work_of_step
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


def test_layers_say_what_is_recomputed_of_them_before_their_work_is_measured() -> None:
    setup = resolved(SPEC, sequence_length=24, recompute=2)
    assert work_of_step(SPEC, setup) is work_of_step(with_recompute(SPEC, 2), setup)
    every, none = (work_of_step(SPEC, structs.replace(setup, recompute=way)) for way in ("full", "none"))
    flops = [executed_flops(work) for work in (none, work_of_step(SPEC, setup), every)]
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
    (time,) = step_times(spec, setup, layout, [H100], forward_flops=10**6, hardware_flops=10**6)
    assert 0 < time.bound_seconds <= time.low_seconds <= time.seconds <= time.high_seconds
    assert time.breakdown.total == time.seconds
    assert {axis for axis, seconds in time.breakdown.communication.items() if seconds} <= axes
    assert bool(time.breakdown.bubble) is ("pp" in axes)
    trace = json.loads(trace_of_step(spec, setup, layout, H100))
    end = max(event["ts"] + event["dur"] for event in trace["traceEvents"] if event["ph"] == "X")
    assert end == pytest.approx(time.seconds * 1e6, rel=1e-3)
