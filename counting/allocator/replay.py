"""A log in, reserved bytes out. Torch-free."""

from collections.abc import Callable, Sequence

import msgspec

from counting.allocator.addresses import falling_addresses, rising_addresses, shuffled_addresses
from counting.allocator.blocks import CachingAllocator, Pool
from counting.allocator.events import Allocate, Event, Free, Mark, UsedBy
from counting.allocator.expandable import ExpandableSegments
from counting.allocator.plain import PlainSegments
from counting.allocator.reserved import MarkedMoment, PoolShare, Reserved, ReservedPeak

SHUFFLES = 4  # orders of addresses at random, beside rising and falling ones


def replay(events: Sequence[Event], *, expandable_segments: bool = False) -> Reserved:
    """What the allocator reserves, by replaying `events`; storages that are in use at their end may stay so.

    With plain segments, once for each of several orders of their addresses: which of several free blocks of equal size
    is taken depends on them, and the driver chooses them.
    """
    new_allocators = [ExpandableSegments] if expandable_segments else _plain_allocators()
    runs = [_run(new(), events) for new in new_allocators]
    of_reserved = [run.reserved_bytes for run in runs]
    lowest, highest = of_reserved.index(min(of_reserved)), of_reserved.index(max(of_reserved))
    low = _peak(new_allocators[lowest](), events[: runs[lowest].events_to_peak])
    return Reserved(
        expandable_segments=expandable_segments,
        replays=len(runs),
        low=low,
        high=low if highest == lowest else _peak(new_allocators[highest](), events[: runs[highest].events_to_peak]),
        peak_allocated_bytes=(min(run.peak_allocated for run in runs), max(run.peak_allocated for run in runs)),
        moments=runs[lowest].moments,
    )


def _plain_allocators() -> list[Callable[[], CachingAllocator]]:
    return [
        lambda: PlainSegments(rising_addresses()),
        lambda: PlainSegments(falling_addresses()),
        *(lambda seed=seed: PlainSegments(shuffled_addresses(seed)) for seed in range(SHUFFLES)),
    ]


class _Run(msgspec.Struct, frozen=True, kw_only=True):
    reserved_bytes: int
    events_to_peak: int  # up to the moment with most allocated of those with most reserved
    peak_allocated: int
    moments: tuple[MarkedMoment, ...]


def _run(allocator: CachingAllocator, events: Sequence[Event]) -> _Run:
    """Replay all events; once the last memory is reserved, find the moment at which most of it is allocated."""
    moments = []
    events_to_peak = reserved = peak_since_reserved = 0
    peak_allocated = peak_since_mark = 0
    for index, event in enumerate(events, start=1):
        if type(event) is Allocate:  # the exact type: a log is long
            allocator.allocate(event.key, event.bytes, event.stream)
            if allocator.allocated > peak_since_mark:
                peak_since_mark = allocator.allocated
            if allocator.reserved > reserved:
                reserved, peak_since_reserved = allocator.reserved, 0
            if allocator.allocated > peak_since_reserved:
                peak_since_reserved, events_to_peak = allocator.allocated, index
        elif type(event) is Free:
            allocator.free(event.key)
        elif type(event) is Mark:
            moments.append(
                MarkedMoment(
                    name=event.name,
                    allocated_bytes=allocator.allocated,
                    reserved_bytes=allocator.reserved,
                    peak_allocated_bytes=peak_since_mark,
                )
            )
            peak_allocated, peak_since_mark = max(peak_allocated, peak_since_mark), allocator.allocated
        elif type(event) is UsedBy:
            allocator.use(event.key, event.stream)
        else:
            allocator.synchronize()
    return _Run(
        reserved_bytes=reserved,
        events_to_peak=events_to_peak,
        peak_allocated=max(peak_allocated, peak_since_mark),
        moments=tuple(moments),
    )


def _peak(allocator: CachingAllocator, events: Sequence[Event]) -> ReservedPeak:
    """What is reserved after these events, and for what."""
    _run(allocator, events)
    return ReservedPeak(
        reserved_bytes=allocator.reserved,
        requested_bytes=allocator.requested,
        rounding_bytes=allocator.allocated - allocator.requested,
        waiting_bytes=sum(block.size for block in allocator.waiting),
        pools=tuple(_share(allocator, pool) for pool in allocator.pools.values()),
    )


def _share(allocator: CachingAllocator, pool: Pool) -> PoolShare:
    idle = sum(allocator.releasable(block) for _, _, block in pool.free_blocks)
    return PoolShare(
        stream=pool.stream,
        small=pool.small,
        reserved_bytes=pool.reserved,
        idle_bytes=idle,
        fragment_bytes=sum(size for size, _, _ in pool.free_blocks) - idle,
    )
