"""One step as a trace that Perfetto and chrome://tracing open: rows of compute and of links for each rank of pp.

The format is that of "Trace Event Format" (Google): complete events ("ph": "X") with microseconds, and metadata that
names processes and threads. A process is a rank of the pipeline, a thread its compute stream or an axis.
"""

from collections.abc import Iterator, Sequence
from typing import Any, get_args

import msgspec

from counting.cost.cluster import Cluster
from counting.cost.step_time.pipeline import segments_of
from counting.cost.step_time.step import calibrated_factor
from counting.cost.step_time.stretches import StretchTimer
from counting.cost.step_time.whole_step import AND, RankStep, WholeStep, bound_of_step, lay_out_step
from counting.ranks.profile import Axis
from counting.setup import Setup
from counting.work import OrderedPass, StepWork
from torch_models.layout import Layout

MOST_EVENTS = 40_000  # about 5 MB
ROWS: tuple[str, ...] = ("compute", *get_args(Axis))


def chrome_trace(work: StepWork, setup: Setup, layout: Layout | None, cluster: Cluster) -> bytes:
    """The JSON document of the trace; the arguments and errors are those of `step_time`.

    It is the estimate, scaled as `step_time` scales it by the cluster's calibration. An event is a layer's part of a
    pass, or a collective; ops and collectives that take turns in a layer stand one after the other. Where that were
    more than `MOST_EVENTS`, an event is a pass, and if these are too many, the first passes of each rank are shown.
    """
    step = lay_out_step(work, StretchTimer(setup, layout, cluster, "estimate"), names=True)
    scale = 1.0
    if cluster.calibration is not None:
        bound = bound_of_step(work, StretchTimer(setup, layout, cluster, "bound"))
        scale = calibrated_factor(cluster.calibration, bound, step.busiest.breakdown.total)
    passes = sum(len(rank.order) for rank in step.ranks)
    of_layers = sum(len(step.timetable[one.stage, one.key].time.segments) for rank in step.ranks for one in rank.order)
    events: list[dict[str, Any]] = []
    for number, rank in enumerate(step.ranks):
        most = max(len(rank.order) * MOST_EVENTS // max(passes, MOST_EVENTS), 1)
        found = _layers(rank, step) if of_layers <= MOST_EVENTS else _passes(rank, most)
        rows = set()
        for row, name, start, end, micro_batch in [*found, *_update(rank)]:
            rows.add(row)
            event: dict[str, Any] = {
                "ph": "X",
                "name": name,
                "pid": number,
                "tid": ROWS.index(row),
                "ts": round(start * scale * 1e6, 3),
                "dur": round((end - start) * scale * 1e6, 3),
            }
            if micro_batch is not None:
                event["args"] = {"micro_batch": micro_batch}
            events.append(event)
        title = f"pipeline rank {number}" if len(step.ranks) > 1 else "rank"
        shown = len({one.micro_batch for one in rank.order[:most] if one.micro_batch is not None})
        label = f"{shown} of {work.micro_batches} micro-batches"
        events += _names(number, title, label, sorted(rows, key=ROWS.index))
    return msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms"})


_Shown = tuple[str, str, float, float, int | None]  # row, name, start, end, micro-batch


def _layers(rank: RankStep, step: WholeStep) -> Iterator[_Shown]:
    for one, segment in segments_of(rank.passes, rank.order, step.timetable):
        yield segment.row, segment.name, segment.start, segment.end, one.micro_batch
    yield from _beside(rank, step)


def _beside(rank: RankStep, step: WholeStep) -> Iterator[_Shown]:
    """The collectives of fully_shard that run beside the passes."""
    until = 0.0
    for one, end in zip(rank.order, rank.passes.ends, strict=True):
        timed = step.timetable[one.stage, one.key]
        if timed.beside:
            start = max(until, end)
            until = start + timed.beside
            yield timed.beside_axis, f"{one.kind} of stage {one.stage}", start, until, None


def _passes(rank: RankStep, most: int) -> Iterator[_Shown]:
    for one, start, end in list(zip(rank.order, rank.passes.starts, rank.passes.ends, strict=True))[:most]:
        yield "compute", _title(one), start, end, one.micro_batch


def _title(one: OrderedPass) -> str:
    kinds = [key.split()[0].replace("_", " ") for key in one.key.split(AND)]
    return f"{' and '.join(kinds)} of stage {one.stage}"


def _update(rank: RankStep) -> Iterator[_Shown]:
    begin = rank.passes.end
    for segment in rank.update.segments:
        yield segment.row, segment.name, begin + segment.start, begin + segment.end, None


def _names(number: int, title: str, label: str, rows: Sequence[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": number, "tid": 0, "args": {"name": title}},
        {"ph": "M", "name": "process_labels", "pid": number, "tid": 0, "args": {"labels": label}},
        {"ph": "M", "name": "process_sort_index", "pid": number, "tid": 0, "args": {"sort_index": number}},
    ]
    for row in rows:
        tid = ROWS.index(row)
        found.append({"ph": "M", "name": "thread_name", "pid": number, "tid": tid, "args": {"name": row}})
        found.append({"ph": "M", "name": "thread_sort_index", "pid": number, "tid": tid, "args": {"sort_index": tid}})
    return found
