"""A log as the file that `torch.cuda.memory._dump_snapshot` writes, which the viewer at pytorch.org/memory_viz opens.

The format is that of `_memory_snapshot_pickled` in torch/csrc/cuda/memory_snapshot.cpp and of the docstring of
`torch.cuda.memory._snapshot`. There is no clock: an entry's time is its number, and as stack it has one frame, with the
name of the storage and of the phase. Torch-free.
"""

import pickle
from collections.abc import Iterable, Sequence
from functools import cache

from counting.allocator.addresses import rising_addresses
from counting.allocator.blocks import Block, CachingAllocator, Pool, blocks_from
from counting.allocator.events import Allocate, Event, Free, Mark, Synchronize, UsedBy
from counting.allocator.expandable import ExpandableSegments
from counting.allocator.plain import PlainSegments

PICKLE_PROTOCOL = 4  # the latest that the viewer reads
DEVICE = 0
NO_POOL = (0, 0)  # of CUDA graphs

Frames = list[dict[str, str | int]]
Entry = dict[str, object]


def memory_snapshot(events: Sequence[Event], *, expandable_segments: bool = False) -> bytes:
    """The file for a log; plain segments stand at rising addresses, one of the orders that `replay` tries."""
    recorder = _Recorder(ExpandableSegments() if expandable_segments else PlainSegments(rising_addresses()))
    recorder.record(events)
    content = {
        "segments": recorder.segments(),
        "device_traces": [recorder.trace],
        "allocator_settings": {
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True" if expandable_segments else "",
            "expandable_segments": expandable_segments,
            "max_split_size": -1,  # no limit
            "garbage_collection_threshold": 0.0,
        },
        "external_annotations": recorder.annotations,
    }
    return pickle.dumps(content, protocol=PICKLE_PROTOCOL)


class _Recorder:
    """Replays a log and writes down what the allocator does."""

    def __init__(self, allocator: CachingAllocator) -> None:
        self.trace: list[Entry] = []
        self.annotations: list[Entry] = []
        self._allocator = allocator
        self._expandable = isinstance(allocator, ExpandableSegments)
        self._frames: dict[int, Frames] = {}  # the address of a block that is not free -> what it is for
        self._streams: dict[str, int] = {}  # the first one is 0, which the viewer takes for the default stream

    def record(self, events: Iterable[Event]) -> None:
        """Replay all events; a phase has the name of the mark at its end."""
        events = list(events)
        phases = iter([event.name for event in events if isinstance(event, Mark)])
        phase = next(phases, "")
        self._annotate("START", phase)
        for event in events:
            match event:
                case Allocate(key, requested, stream, name):
                    self._allocated(self._allocator.allocate(key, requested, stream), _frames(name, phase))
                case Free(key):
                    self._freed(self._allocator.free(key))
                case UsedBy(key, stream):
                    self._allocator.use(key, stream)
                case Mark():
                    self._annotate("END", phase)
                    phase = next(phases, "")
                    self._annotate("START", phase)
                case Synchronize():
                    for block in self._allocator.synchronize():
                        self._completed(block)
        self._annotate("END", phase)

    def segments(self) -> list[Entry]:
        """The segments at the end, by address; the mapped part of an expandable one."""
        heads = [head for pool in self._allocator.pools.values() for head in pool.heads]
        return [self._segment(head) for head in sorted(heads, key=lambda head: head.address)]

    def _allocated(self, block: Block | None, frames: Frames) -> None:
        for pool, address, size in self._allocator.driver_calls:
            self._add("segment_map" if self._expandable else "segment_alloc", pool, address, size, frames)
        self._allocator.driver_calls.clear()
        if block is not None:
            self._add("alloc", block.pool, block.address, block.requested, frames)
            self._frames[block.address] = frames

    def _freed(self, block: Block | None) -> None:
        """A block that was merged still has the address and the bytes that its storage had."""
        if block is not None:
            self._add("free_requested", block.pool, block.address, block.requested, self._frames[block.address])
            if not block.used_by:
                self._completed(block)

    def _completed(self, block: Block) -> None:
        self._add("free_completed", block.pool, block.address, block.requested, self._frames.pop(block.address))

    def _add(self, action: str, pool: Pool, address: int, size: int, frames: Frames) -> None:
        self.trace.append(
            {
                "action": action,
                "addr": address,
                "size": size,
                "stream": self._stream(pool),
                "time_us": len(self.trace),
                "frames": frames,
            }
        )

    def _annotate(self, stage: str, phase: str) -> None:
        if phase:
            self.annotations.append({"device": DEVICE, "time_us": len(self.trace), "stage": stage, "name": phase})

    def _stream(self, pool: Pool) -> int:
        return self._streams.setdefault(pool.stream, len(self._streams))

    def _segment(self, head: Block) -> Entry:
        blocks = list(blocks_from(head))
        in_use = [block for block in blocks if not block.free]
        allocated = [block for block in in_use if not block.used_by or block not in self._allocator.waiting]
        return {
            "device": DEVICE,
            "address": head.address,
            "total_size": sum(block.size for block in blocks),
            "allocated_size": sum(block.size for block in allocated),
            "active_size": sum(block.size for block in in_use),
            "requested_size": sum(block.requested for block in in_use),
            "stream": self._stream(head.pool),
            "segment_type": "small" if head.pool.small else "large",
            "segment_pool_id": NO_POOL,
            "is_expandable": self._expandable,
            "frames": [],
            "blocks": [self._block(block) for block in blocks],
        }

    def _block(self, block: Block) -> Entry:
        waits = block.used_by and block in self._allocator.waiting
        return {
            "address": block.address,
            "size": block.size,
            "requested_size": 0 if block.free else block.requested,
            "state": "inactive" if block.free else "active_pending_free" if waits else "active_allocated",
            "frames": [] if block.free else self._frames[block.address],
        }


@cache
def _frames(name: str, phase: str) -> Frames:
    return [{"filename": phase, "line": 0, "name": name}]
