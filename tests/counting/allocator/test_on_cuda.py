"""On a CUDA device: torch's own allocator, given the same log, has the same bytes after every event.

The driver's addresses are read from torch's history, and the replay puts its segments there. Without record_stream: on
a device without work, events are complete at once.
"""

import itertools
import json
import os
import subprocess
import sys

import pytest
import torch

from counting.allocator.addresses import rising_addresses
from counting.allocator.blocks import CachingAllocator
from counting.allocator.events import Allocate, Free
from counting.allocator.expandable import ExpandableSegments
from counting.allocator.plain import PlainSegments
from tests.counting.allocator.logs import random_log

SCRIPT = """
import json, sys
import torch

torch.cuda.memory._record_memory_history(max_entries=1_000_000)
streams, tensors, after = {"compute": torch.cuda.default_stream()}, {}, []
for event in json.load(sys.stdin):
    if len(event) > 1:
        key, size, stream = event
        with torch.cuda.stream(streams.setdefault(stream, torch.cuda.Stream())):
            tensors[key] = torch.empty(size, dtype=torch.uint8, device="cuda")
    else:
        del tensors[event[0]]
    after.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
trace = torch.cuda.memory._snapshot()["device_traces"][0]
segments = [entry["addr"] for entry in trace if entry["action"] == "segment_alloc"]
json.dump({"after": after, "segments": segments}, sys.stdout)
"""


def log_of(seed: int) -> list[Allocate | Free]:
    return [event for event in random_log(seed, 300) if isinstance(event, Allocate | Free)]


def as_data(event: Allocate | Free) -> list[object]:
    return [event.key, event.bytes, event.stream] if isinstance(event, Allocate) else [event.key]


def follow(allocator: CachingAllocator, events: list[Allocate | Free]) -> list[list[int]]:
    """Allocated and reserved bytes after each event."""
    after = []
    for event in events:
        if isinstance(event, Allocate):
            allocator.allocate(event.key, event.bytes, event.stream)
        else:
            allocator.free(event.key)
        after.append([allocator.allocated, allocator.reserved])
    return after


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: its allocator is not compared")
@pytest.mark.parametrize("expandable", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_as_torch_does(seed: int, expandable: bool) -> None:
    events = log_of(seed)
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps([as_data(event) for event in events]),
        env={**os.environ, "PYTORCH_ALLOC_CONF": f"expandable_segments:{expandable}"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(run.stdout)
    addresses = iter(found["segments"])
    allocator = ExpandableSegments() if expandable else PlainSegments(lambda size: int(next(addresses)))
    assert follow(allocator, events) == found["after"]


def test_the_log_that_is_compared_does_something() -> None:
    events = log_of(0)
    after = follow(PlainSegments(rising_addresses()), events)
    assert len({stream for event in events if isinstance(event, Allocate) for stream in [event.stream]}) == 3
    assert any(low[0] > high[0] for low, high in itertools.pairwise(after))
    assert after[-1][1] > 10**9
