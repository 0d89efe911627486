"""The trace of a step: what Perfetto needs of it, and that it shows the times of the step."""

import json
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from msgspec import structs

from counting.cost.cluster import Calibration, Cluster
from counting.cost.step_time import chrome_trace, step_time
from counting.cost.step_time import trace as of_traces
from counting.cost.step_time.stretches import StretchTimer
from counting.cost.step_time.whole_step import lay_out_step
from counting.work import StepWork
from tests.counting.cost.hand_made import GIGA, ROUND, SETUP, cluster, pipeline_step, sharded_step
from torch_models.layout import Layout

ROUND_CLUSTER = cluster(structs.replace(ROUND, beside_collectives_share=1.0))
ODD_CLUSTER = structs.replace(ROUND_CLUSTER, calibration=Calibration(scale=1.2345678, low=0.9, high=1.1, rows=3))
CALL = 8.4e-6


def trace_of(work: StepWork, layout: Layout, on: Cluster = ROUND_CLUSTER) -> list[dict[str, Any]]:
    setup = structs.replace(SETUP, micro_batches=work.micro_batches)
    document = json.loads(chrome_trace(work, setup, layout, on).document)
    assert set(document) == {"traceEvents", "displayTimeUnit"}
    events: list[dict[str, Any]] = document["traceEvents"]
    return events


def complete(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["ph"] == "X"]


def test_events_are_complete_and_rows_have_names() -> None:
    """The fields that "Trace Event Format" asks for of complete events and of metadata."""
    events = trace_of(pipeline_step(2, 3, message=GIGA), Layout(num_gpus=2, dp=1, pp=2))
    for event in complete(events):
        assert {"ph", "name", "pid", "tid", "ts", "dur"} <= set(event)
        assert event["ts"] >= 0 < event["dur"]
    names = {(event["pid"], event["name"]): event["args"] for event in events if event["ph"] == "M"}
    assert names[0, "process_name"] == {"name": "pipeline rank 0"}
    assert names[1, "process_name"] == {"name": "pipeline rank 1"}
    assert names[1, "process_labels"] == {"labels": "3 of 3 micro-batches"}
    assert names[1, "thread_name"] == {"name": "compute"}
    assert {event["ph"] for event in events} == {"X", "M"}


def test_a_sharded_step_shows_its_timeline() -> None:
    """The table in test_streams.py: layer 0 runs from 5 to 9 s, and its gather from 2 to 5. Then the update."""
    events = complete(trace_of(sharded_step(), Layout(num_gpus=2, dp=1, fsdp=2)))
    shown = {event["name"]: (event["ts"] / 1e6, event["dur"] / 1e6) for event in events if event["tid"] == 0}
    late = {"abs": 12 * CALL}
    assert shown["forward, embedding"] == pytest.approx((2, 1), **late)
    assert shown["forward, layer 0"] == pytest.approx((5, 4), **late)
    assert shown["forward, layer 1"] == pytest.approx((9, 4), **late)
    assert shown["backward, norm, head and loss"] == pytest.approx((13, 5), **late)
    assert shown["backward, layer 1"] == pytest.approx((18, 8), **late)
    assert shown["backward, layer 0"] == pytest.approx((26, 8), **late)
    assert shown["backward, embedding"] == pytest.approx((35, 1), **late)
    assert shown["optimizer"] == pytest.approx((43, 2), **late)
    gathers = [
        (event["ts"] / 1e6, event["dur"] / 1e6) for event in events if event["tid"] == of_traces.ROWS.index("fsdp")
    ]
    assert gathers[1] == pytest.approx((2, 3), **late)
    assert len(gathers) == 10


@pytest.mark.parametrize(("scale", "seconds"), [(1.2, 54), (0.1, 16.5)])
def test_a_calibrated_trace_is_as_long_as_the_step(scale: float, seconds: float) -> None:
    """45 s x 1.2; and, as a tenth of them is below the bound of 16.5 s, no less than that."""
    calibrated = structs.replace(ROUND_CLUSTER, calibration=Calibration(scale=scale, low=0.9, high=1.1, rows=3))
    events = complete(trace_of(sharded_step(), Layout(num_gpus=2, dp=1, fsdp=2), calibrated))
    assert max(event["ts"] + event["dur"] for event in events) == pytest.approx(seconds * 1e6, rel=1e-5)


@pytest.mark.parametrize("message", [GIGA // 4, GIGA // 3, 12345677])
def test_events_of_a_row_do_not_overlap(message: int) -> None:
    """In whole nanoseconds, the unit of the viewer."""
    events = complete(trace_of(pipeline_step(4, 8, message=message), Layout(num_gpus=4, dp=1, pp=4), ODD_CLUSTER))
    for rank in range(4):
        row = sorted(
            (round(1e3 * event["ts"]), round(1e3 * event["dur"]))
            for event in events
            if (event["pid"], event["tid"]) == (rank, 0)
        )
        assert len(row) == 2 * 8 + 1  # passes of one layer, and the update
        for (start, lasting), (following, _) in pairwise(row):
            assert following >= start + lasting


def test_the_layers_of_a_later_stage_have_the_numbers_of_the_model() -> None:
    events = complete(trace_of(pipeline_step(3, 1), Layout(num_gpus=3, dp=1, pp=3)))
    assert {event["name"] for event in events if event["pid"] == 2} == {
        "forward, layer 2",
        "backward, layer 2",
        "optimizer",
    }
    assert {event["args"]["micro_batch"] for event in events if "args" in event} == {0}


def left_out_of(work: StepWork, layout: Layout) -> str:
    return chrome_trace(work, structs.replace(SETUP, micro_batches=work.micro_batches), layout, ROUND_CLUSTER).left_out


def labels_of(events: list[dict[str, Any]]) -> set[str]:
    return {event["args"]["labels"] for event in events if event["name"] == "process_labels"}


def test_a_step_of_many_micro_batches_shows_all_of_them() -> None:
    """As long as `step_time` says: 43 s of a micro-batch, of which the order has three of 50, and 2 s of the update."""
    work, layout = sharded_step(micro_batches=50), Layout(num_gpus=2, dp=1, fsdp=2)
    events = trace_of(work, layout)
    seconds = step_time(
        work,
        structs.replace(SETUP, micro_batches=50),
        layout,
        ROUND_CLUSTER,
        model_flops_per_token=Fraction(1),
        hardware_flops=1,
    ).seconds
    assert max(event["ts"] + event["dur"] for event in complete(events)) == pytest.approx(seconds * 1e6, rel=1e-9)
    assert seconds == pytest.approx(50 * 43 + 2, rel=1e-4)
    assert {event["args"]["micro_batch"] for event in complete(events) if "args" in event} == set(range(50))
    assert labels_of(events) == {"50 of 50 micro-batches"}
    assert left_out_of(work, layout) == ""


def test_a_long_step_shows_passes_and_a_longer_one_the_first_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    work, layout = sharded_step(micro_batches=50), Layout(num_gpus=2, dp=1, fsdp=2)
    whole = max(event["ts"] + event["dur"] for event in complete(trace_of(work, layout)))
    monkeypatch.setattr(of_traces, "MOST_EVENTS", 60)
    names = [event["name"] for event in complete(trace_of(work, layout))]
    assert names == ["forward and backward of stage 0"] * 50 + ["optimizer"]
    assert left_out_of(work, layout) == "an event is a pass, as those of layers were more than 60"
    monkeypatch.setattr(of_traces, "MOST_EVENTS", 10)
    events = trace_of(work, layout)
    names = [event["name"] for event in complete(events)]
    assert names == ["forward and backward of stage 0"] * 10 + ["40 further micro-batches", "optimizer"]
    assert max(event["ts"] + event["dur"] for event in complete(events)) == pytest.approx(whole, rel=1e-9)
    assert labels_of(events) == {"10 of 50 micro-batches"}
    assert left_out_of(work, layout).endswith(
        "10 of 50 micro-batches are shown, and the time of the others as one event"
    )


def test_what_the_order_of_a_pipeline_leaves_out_has_its_time() -> None:
    """Four of ten micro-batches are in the order."""
    work, layout = structs.replace(pipeline_step(2, 4), micro_batches=10), Layout(num_gpus=2, dp=1, pp=2)
    events = trace_of(work, layout)
    ends = [max(e["ts"] + e["dur"] for e in complete(events) if e["pid"] == rank) for rank in range(2)]
    step = lay_out_step(work, StretchTimer(structs.replace(SETUP, micro_batches=10), layout, ROUND_CLUSTER, "estimate"))
    assert max(ends) == pytest.approx(step.seconds * 1e6, rel=1e-9)
    assert [event["name"] for event in complete(events)].count("6 further micro-batches") == 2
    assert labels_of(events) == {"4 of 10 micro-batches"}


def test_passes_of_a_pipeline_beyond_the_first_have_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    work, layout = pipeline_step(2, 4), Layout(num_gpus=2, dp=1, pp=2)
    whole = max(event["ts"] + event["dur"] for event in complete(trace_of(work, layout)))
    monkeypatch.setattr(of_traces, "MOST_EVENTS", 6)
    events = complete(trace_of(work, layout))
    assert max(event["ts"] + event["dur"] for event in events) == whole
    assert [event["name"] for event in events].count("5 further passes") == 2
