"""The trace of a step: what Perfetto needs of it, and that it shows the times of the step."""

import json
from itertools import pairwise
from typing import Any

import pytest
from msgspec import structs

from counting.cost.cluster import Calibration, Cluster
from counting.cost.step_time import chrome_trace
from counting.cost.step_time import trace as of_traces
from counting.work import StepWork
from tests.counting.cost.hand_made import GIGA, ROUND, SETUP, cluster, pipeline_step, sharded_step
from torch_models.layout import Layout

ROUND_CLUSTER = cluster(structs.replace(ROUND, beside_collectives_share=1.0))
CALL = 8.4e-6


def trace_of(work: StepWork, layout: Layout, on: Cluster = ROUND_CLUSTER) -> list[dict[str, Any]]:
    setup = structs.replace(SETUP, micro_batches=work.micro_batches)
    document = json.loads(chrome_trace(work, setup, layout, on))
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


def test_events_of_a_row_do_not_overlap() -> None:
    events = complete(trace_of(pipeline_step(4, 8, message=GIGA // 4), Layout(num_gpus=4, dp=1, pp=4)))
    for rank in range(4):
        row = sorted((event["ts"], event["dur"]) for event in events if (event["pid"], event["tid"]) == (rank, 0))
        assert len(row) == 2 * 8 + 1  # passes of one layer, and the update
        for (start, seconds), (following, _) in pairwise(row):
            assert following >= start + seconds - 0.01


def test_the_layers_of_a_later_stage_have_the_numbers_of_the_model() -> None:
    events = complete(trace_of(pipeline_step(3, 1), Layout(num_gpus=3, dp=1, pp=3)))
    assert {event["name"] for event in events if event["pid"] == 2} == {
        "forward, layer 2",
        "backward, layer 2",
        "optimizer",
    }
    assert {event["args"]["micro_batch"] for event in events if "args" in event} == {0}


def test_a_long_step_shows_passes_and_a_longer_one_the_first_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    work, layout = sharded_step(micro_batches=3), Layout(num_gpus=2, dp=1, fsdp=2)
    monkeypatch.setattr(of_traces, "MOST_EVENTS", 20)
    names = [event["name"] for event in complete(trace_of(work, layout))]
    assert names == ["forward and backward of stage 0"] * 3 + ["optimizer"]
    monkeypatch.setattr(of_traces, "MOST_EVENTS", 2)
    events = trace_of(work, layout)
    assert len([event for event in complete(events) if event["name"] != "optimizer"]) == 2
    assert any(event.get("args") == {"labels": "2 of 3 micro-batches"} for event in events)


def test_a_short_order_is_said() -> None:
    events = trace_of(sharded_step(micro_batches=50), Layout(num_gpus=2, dp=1, fsdp=2))
    assert any(event.get("args") == {"labels": "3 of 50 micro-batches"} for event in events)
