"""One step as a trace that Perfetto and chrome://tracing open: rows of compute and of links for each rank of pp.

The format is that of "Trace Event Format" (Google): complete events ("ph": "X") with microseconds, and metadata that
names processes and threads. A process is a rank of the pipeline, a thread its compute stream or an axis.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, get_args

import msgspec
from msgspec import structs

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
ROUNDED = 2  # nanoseconds by which two times that are equal may differ
ROWS: tuple[str, ...] = ("compute", *get_args(Axis))


class ChromeTrace(NamedTuple):
    """The JSON document, and what it does not show of the step, in words; empty if nothing."""

    document: bytes
    left_out: str


def chrome_trace(work: StepWork, setup: Setup, layout: Layout | None, cluster: Cluster) -> ChromeTrace:
    """The trace of a whole step; the arguments and errors are those of `step_time`.

    It is the estimate, scaled as `step_time` scales it by the cluster's calibration. An event is a layer's part of a
    pass, or a collective; ops and collectives that take turns in a layer stand one after the other. Where that were
    more than `MOST_EVENTS`, an event is a pass, and if these are too many, the first passes of each rank are shown, and
    the time of the others as one event. So are micro-batches that the order of a pipeline leaves out.
    """
    laid_out = work if len(work.ranks) > 1 else _with_further_micro_batches(work, MOST_EVENTS)
    step = lay_out_step(laid_out, StretchTimer(setup, layout, cluster, "estimate"), names=True)
    scale = 1.0
    if cluster.calibration is not None:
        bound = bound_of_step(work, StretchTimer(setup, layout, cluster, "bound"))
        scale = calibrated_factor(cluster.calibration, bound, step.busiest.breakdown.total)
    passes = sum(len(rank.order) for rank in step.ranks)
    of_layers = sum(len(step.timetable[one.stage, one.key].time.segments) for rank in step.ranks for one in rank.order)
    events: list[dict[str, Any]] = []
    fewest = work.micro_batches
    for number, rank in enumerate(step.ranks):
        most = max(len(rank.order) * MOST_EVENTS // max(passes, MOST_EVENTS), 1)
        shown = len({one.micro_batch for one in rank.order[:most] if one.micro_batch is not None})
        fewest = min(fewest, shown)
        found = [
            *(_layers(rank, step) if of_layers <= MOST_EVENTS else _passes(rank, most)),
            *_further(rank, work.micro_batches - shown),
            *_update(rank),
        ]
        events += _events(found, number, scale)
        title = f"pipeline rank {number}" if len(step.ranks) > 1 else "rank"
        rows = sorted({row for row, *_ in found}, key=ROWS.index)
        events += _names(number, title, f"{shown} of {work.micro_batches} micro-batches", rows)
    said = (
        [] if of_layers <= MOST_EVENTS else [f"an event is a pass, as those of layers were more than {MOST_EVENTS:,}"]
    )
    if fewest < work.micro_batches:
        said.append(
            f"{fewest:,} of {work.micro_batches:,} micro-batches are shown, and the time of the others as one event"
        )
    return ChromeTrace(msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms"}), "; ".join(said))


def _with_further_micro_batches(work: StepWork, most: int) -> StepWork:
    """A step without a pipeline with the micro-batches that its order leaves out, `most` in all.

    Each does what the one in the middle of the order does.
    """
    (rank,) = work.ranks
    both = [rank.order[begin : begin + 2] for begin in range(0, len(rank.order), 2)]  # forward and backward
    middle = len(both) // 2
    further = max(min(work.micro_batches, most) - len(both), 0)
    order = (
        structs.replace(one, micro_batch=number)
        for number, pair in enumerate([*both[:middle], *[both[middle]] * (further + 1), *both[middle + 1 :]])
        for one in pair
    )
    return structs.replace(work, ranks=(structs.replace(rank, order=tuple(order)),))


_Shown = tuple[str, str, float, float, int | None]  # row, name, start, end, micro-batch


def _events(found: Sequence[_Shown], number: int, scale: float) -> list[dict[str, Any]]:
    """The events of one rank in whole nanoseconds; an event does not begin before the one before ends, as rounded."""
    events: list[dict[str, Any]] = []
    ends: dict[str, int] = {}
    for row, name, start, end, micro_batch in sorted(found, key=lambda each: each[2]):
        begin, until = (round(seconds * scale * 1e9) for seconds in (start, end))
        if 0 < ends.get(row, 0) - begin <= ROUNDED:
            begin = ends[row]
        ends[row] = max(begin, until)
        event: dict[str, Any] = {"ph": "X", "name": name, "pid": number, "tid": ROWS.index(row)}
        event |= {"ts": begin / 1e3, "dur": (ends[row] - begin) / 1e3}
        if micro_batch is not None:
            event["args"] = {"micro_batch": micro_batch}
        events.append(event)
    return events


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
    starts, ends = rank.passes.starts, rank.passes.ends
    for one, start, end in list(zip(rank.order, starts, ends, strict=True))[:most]:
        yield "compute", _title(one), start, end, one.micro_batch
    if most < len(rank.order):
        yield "compute", f"{len(rank.order) - most} further passes", starts[most], rank.passes.end, None


def _further(rank: RankStep, micro_batches: int) -> Iterator[_Shown]:
    """The time of micro-batches that the order leaves out."""
    if rank.further:
        end = rank.passes.end
        yield "compute", f"{micro_batches} further micro-batches", end, end + rank.further, None


def _title(one: OrderedPass) -> str:
    kinds = [key.split()[0].replace("_", " ") for key in one.key.split(AND)]
    return f"{' and '.join(kinds)} of stage {one.stage}"


def _update(rank: RankStep) -> Iterator[_Shown]:
    begin = rank.update_begin + rank.further
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
