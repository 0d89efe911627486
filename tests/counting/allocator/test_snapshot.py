"""The file is read back, and by torch's own functions for it; torch's viewer itself is a page in JavaScript."""

import base64
import json
import pickle
import pickletools
import re
from collections import Counter
from typing import Any

import pytest
from torch.cuda import _memory_viz

from counting.allocator.events import Allocate, Event, Free, Mark, Synchronize, UsedBy
from counting.allocator.replay import replay
from counting.allocator.snapshot import memory_snapshot
from tests.counting.allocator.logs import MIB, random_log

EVENTS: list[Event] = [
    Allocate(1, 30 * MIB + 1, "compute", "aten::mm"),
    Allocate(2, 40 * MIB, "gather", "all_gather"),
    UsedBy(2, "compute"),
    Mark("forward"),
    Free(2),
    Allocate(3, 100, "compute", "aten::sum"),
    Free(1),
    Mark("backward"),
]
# Every opcode that MemoryViz.js reads (`unpickle`).
READABLE = """
APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPUT BINUNICODE DICT EMPTY_DICT EMPTY_LIST EMPTY_TUPLE FRAME
LIST LONG1 LONG_BINGET LONG_BINPUT MARK MEMOIZE NEWFALSE NEWTRUE NONE PROTO SETITEM SETITEMS SHORT_BINUNICODE STOP TUPLE
TUPLE1 TUPLE2 TUPLE3
"""


def snapshot(events: list[Event], *, expandable: bool = False) -> dict[str, Any]:
    content = pickle.loads(memory_snapshot(events, expandable_segments=expandable))
    assert isinstance(content, dict)
    return content


def test_every_entry_of_the_trace() -> None:
    first, second, third = (segment["address"] for segment in snapshot(EVENTS)["segments"])
    forward, backward = "forward", "backward"
    entries = [
        (entry["action"], entry["addr"], entry["size"], entry["stream"], entry["frames"][0]["filename"])
        for entry in snapshot(EVENTS)["device_traces"][0]
    ]
    assert entries == [
        ("segment_alloc", first, 32 * MIB, 0, forward),
        ("alloc", first, 30 * MIB + 1, 0, forward),
        ("segment_alloc", second, 40 * MIB, 1, forward),
        ("alloc", second, 40 * MIB, 1, forward),
        ("free_requested", second, 40 * MIB, 1, forward),
        ("segment_alloc", third, 2 * MIB, 0, backward),
        ("alloc", third, 100, 0, backward),
        ("free_requested", first, 30 * MIB + 1, 0, forward),
        ("free_completed", first, 30 * MIB + 1, 0, forward),
    ]
    names = [entry["frames"][0]["name"] for entry in snapshot(EVENTS)["device_traces"][0]]
    assert names[:4] == ["aten::mm", "aten::mm", "all_gather", "all_gather"]


def test_what_waited_is_freed_when_the_device_is_done() -> None:
    trace = snapshot([*EVENTS, Synchronize()])["device_traces"][0]
    assert [(entry["action"], entry["size"]) for entry in trace[9:]] == [("free_completed", 40 * MIB)]


def test_the_segments_at_the_end() -> None:
    segments = snapshot(EVENTS)["segments"]
    figures = [
        (
            *(segment[key] for key in ("segment_type", "stream", "total_size", "allocated_size", "active_size")),
            segment["requested_size"],
            [(block["state"], block["size"], block["requested_size"]) for block in segment["blocks"]],
        )
        for segment in segments
    ]
    assert figures == [
        ("large", 0, 32 * MIB, 0, 0, 0, [("inactive", 32 * MIB, 0)]),
        ("large", 1, 40 * MIB, 0, 40 * MIB, 40 * MIB, [("active_pending_free", 40 * MIB, 40 * MIB)]),
        (
            "small",
            0,
            2 * MIB,
            512,
            512,
            100,
            [("active_allocated", 512, 100), ("inactive", 2 * MIB - 512, 0)],
        ),
    ]


def test_phases_are_annotations() -> None:
    marks = [(each["stage"], each["name"], each["time_us"]) for each in snapshot(EVENTS)["external_annotations"]]
    assert marks == [("START", "forward", 0), ("END", "forward", 4), ("START", "backward", 4), ("END", "backward", 9)]


def test_expandable_segments_are_mapped_and_say_so() -> None:
    content = snapshot(EVENTS, expandable=True)
    mapped = [entry["size"] for entry in content["device_traces"][0] if entry["action"] == "segment_map"]
    assert mapped == [40 * MIB, 40 * MIB, 2 * MIB]
    assert [segment["is_expandable"] for segment in content["segments"]] == [True, True, True]
    assert content["allocator_settings"]["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"


@pytest.mark.parametrize("expandable", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_torch_reads_it(seed: int, expandable: bool) -> None:
    """torch checks that blocks fill their segments, and prints the sums that the replay has."""
    events = random_log(seed)
    content = snapshot(events, expandable=expandable)
    low, high = replay(events, expandable_segments=expandable).reserved_bytes
    assert low <= sum(segment["total_size"] for segment in content["segments"]) <= high
    printed = re.findall(r"^total_reserved: (\S+)$", _memory_viz.segsum(content), re.MULTILINE)
    assert printed == [repr(_memory_viz.Bytes(sum(segment["total_size"] for segment in content["segments"])))]
    lines = _memory_viz.trace(content).splitlines()
    actions = Counter(entry["action"] for entry in content["device_traces"][0])
    assert sum(line.startswith("del ") for line in lines) == actions["free_requested"] > 0
    assert sum(" = " in line for line in lines) >= actions["alloc"]


def test_torch_plots_it() -> None:
    page = _memory_viz.trace_plot(snapshot(EVENTS))
    encoded = re.search(r"local_files = (\[.*\])$", page, re.MULTILINE)
    assert encoded is not None
    assert pickle.loads(base64.b64decode(json.loads(encoded[1])[0]["base64"])) == snapshot(EVENTS)


@pytest.mark.parametrize("expandable", [False, True])
def test_the_viewer_can_read_it(expandable: bool) -> None:
    """Its own reader knows some opcodes of pickle, up to protocol 4; a number above 2**53 would not stay exact."""
    for opcode, argument, _ in pickletools.genops(memory_snapshot(random_log(0), expandable_segments=expandable)):
        assert opcode.name in READABLE.split()
        assert not isinstance(argument, int) or argument < 1 << 53
    assert next(pickletools.genops(memory_snapshot(EVENTS)))[1] == 4


def test_entries_free_what_was_allocated() -> None:
    """Replaying the entries alone, every address is allocated once before it is freed, and lies in a segment."""
    content = snapshot(random_log(1))
    in_use: dict[int, int] = {}
    reserved: list[tuple[int, int]] = []
    for entry in content["device_traces"][0]:
        match entry["action"]:
            case "segment_alloc":
                reserved.append((entry["addr"], entry["addr"] + entry["size"]))
            case "alloc":
                assert any(start <= entry["addr"] and entry["addr"] + entry["size"] <= end for start, end in reserved)
                assert entry["addr"] not in in_use
                in_use[entry["addr"]] = entry["size"]
            case "free_completed":
                assert in_use.pop(entry["addr"]) == entry["size"]
    blocks = [block for segment in content["segments"] for block in segment["blocks"] if block["state"] != "inactive"]
    assert {block["address"]: block["requested_size"] for block in blocks} == in_use
