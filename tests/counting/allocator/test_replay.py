import time
from itertools import pairwise

import pytest

from counting.allocator.addresses import falling_addresses, rising_addresses, shuffled_addresses
from counting.allocator.blocks import CachingAllocator, blocks_from
from counting.allocator.events import Allocate, Event, Free, Mark, Synchronize, UsedBy
from counting.allocator.expandable import ExpandableSegments
from counting.allocator.plain import PlainSegments
from counting.allocator.replay import replay
from counting.allocator.reserved import MarkedMoment, PoolShare, ReservedPeak
from tests.counting.allocator.logs import MIB, random_log


def test_the_parts_of_a_peak_by_hand() -> None:
    """Reserved at the last allocation: 40 (gather) + 20 + 60 (compute, large) + 2 (compute, small) MiB."""
    events = [
        Allocate(1, 40 * MIB, "gather"),
        Allocate(2, 5 * MIB, "compute"),  # 15 of 20 MiB are left beside it
        Allocate(3, 100, "compute"),  # a block of 512 bytes of 2 MiB
        Free(1),
        Mark("gathered"),
        Allocate(4, 59 * MIB + 1, "compute"),  # a whole segment of 60 MiB
        Free(4),
        Mark("end"),
        Allocate(5, 512, "compute"),
        Mark("after"),
    ]
    found = replay(events)
    peak = ReservedPeak(
        reserved_bytes=122 * MIB,
        requested_bytes=64 * MIB + 101,
        rounding_bytes=412 + MIB - 1,
        waiting_bytes=0,
        pools=(
            PoolShare(stream="gather", small=False, reserved_bytes=40 * MIB, idle_bytes=40 * MIB, fragment_bytes=0),
            PoolShare(stream="compute", small=False, reserved_bytes=80 * MIB, idle_bytes=0, fragment_bytes=15 * MIB),
            PoolShare(stream="compute", small=True, reserved_bytes=2 * MIB, idle_bytes=0, fragment_bytes=2 * MIB - 512),
        ),
    )
    assert (found.low, found.high) == (peak, peak)
    assert found.reserved_bytes == (122 * MIB, 122 * MIB)
    assert found.peak_allocated_bytes == (65 * MIB + 512, 65 * MIB + 512)
    assert found.moments == (
        MarkedMoment(
            name="gathered",
            allocated_bytes=5 * MIB + 512,
            reserved_bytes=62 * MIB,
            peak_allocated_bytes=45 * MIB + 512,
        ),
        MarkedMoment(
            name="end", allocated_bytes=5 * MIB + 512, reserved_bytes=122 * MIB, peak_allocated_bytes=65 * MIB + 512
        ),
        MarkedMoment(
            name="after", allocated_bytes=5 * MIB + 1024, reserved_bytes=122 * MIB, peak_allocated_bytes=5 * MIB + 1024
        ),
    )


def test_the_parts_are_those_of_the_fullest_moment() -> None:
    """The last segment is a small one; later, with as much reserved, the large one is used again."""
    events: list[Event] = [Allocate(1, 40 * MIB, "compute"), Free(1), Allocate(2, 512, "compute"), Free(2)]
    idle = replay(events).low
    assert (idle.reserved_bytes, idle.allocated_bytes, idle.idle_bytes) == (42 * MIB, 512, 40 * MIB)
    used = replay([*events, Allocate(3, 39 * MIB, "compute"), Free(3), Allocate(4, 512, "compute")]).low
    assert (used.reserved_bytes, used.allocated_bytes, used.idle_bytes) == (42 * MIB, 40 * MIB, 2 * MIB)


def test_expandable_segments_waste_less() -> None:
    """A freed segment of 30 MiB cannot serve 41 MiB; an expandable one, of 40 MiB by then, grows by a page."""
    events: list[Event] = [Allocate(1, 30 * MIB, "compute"), Free(1), Allocate(2, 41 * MIB, "compute")]
    assert replay(events).reserved_bytes == (72 * MIB, 72 * MIB)
    found = replay(events, expandable_segments=True)
    assert found.reserved_bytes == (60 * MIB, 60 * MIB)
    assert (found.replays, found.low.fragment_bytes, found.low.idle_bytes) == (1, 19 * MIB, 0)


def test_addresses_decide_what_is_reserved() -> None:
    """Two segments have 30 MiB free each, beside a block that goes soon and beside one that stays: which serves?"""
    events = [
        Allocate(1, 60 * MIB, "compute"),
        Allocate(2, 62 * MIB, "compute"),
        Free(1),
        Allocate(3, 30 * MIB, "compute"),  # the first half of segment 1
        Free(2),
        Allocate(4, 32 * MIB, "compute"),  # the first half of segment 2: both have 30 MiB free
        Allocate(5, 30 * MIB, "compute"),  # which of the two?
        Free(3),
        Allocate(6, 60 * MIB, "compute"),  # fits segment 1 if it was the second
    ]
    found = replay(events)
    assert (found.reserved_bytes, found.replays) == ((122 * MIB, 182 * MIB), 6)
    assert (found.low.fragment_bytes, found.high.fragment_bytes) == (0, 60 * MIB)


def test_what_waits_for_another_stream_is_a_part() -> None:
    events = [
        Allocate(1, 40 * MIB, "gather"),
        UsedBy(1, "compute"),
        Free(1),
        Allocate(2, 40 * MIB, "gather"),
        Synchronize(),
    ]
    found = replay(events)
    assert (found.low.reserved_bytes, found.low.allocated_bytes, found.low.waiting_bytes) == (
        80 * MIB,
        40 * MIB,
        40 * MIB,
    )


def test_an_empty_log_reserves_nothing() -> None:
    for expandable in (False, True):
        found = replay([], expandable_segments=expandable)
        assert (found.reserved_bytes, found.peak_allocated_bytes, found.low.pools) == ((0, 0), (0, 0), ())


@pytest.mark.parametrize("expandable", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_parts_sum_to_the_whole(seed: int, expandable: bool) -> None:
    found = replay(random_log(seed), expandable_segments=expandable)
    for peak in (found.low, found.high):
        assert peak.reserved_bytes == sum(pool.reserved_bytes for pool in peak.pools)
        assert peak.reserved_bytes == (
            peak.allocated_bytes + peak.waiting_bytes + peak.idle_bytes + peak.fragment_bytes
        )
    assert found.low.reserved_bytes <= found.high.reserved_bytes
    assert found.low.reserved_bytes >= found.peak_allocated_bytes[0]
    assert found.moments[-1].reserved_bytes <= found.low.reserved_bytes


def tiled(allocator: CachingAllocator) -> None:
    """No gap between the blocks of a segment, no two free ones side by side, and no two segments overlap."""
    stretches: list[tuple[int, int]] = []
    free = waiting_or_used = 0
    for pool in allocator.pools.values():
        in_pool = []
        for head in pool.heads:
            end, was_free = head.address, False
            for block in blocks_from(head):
                assert block.address == end
                assert not (block.free and was_free)
                assert block.size % 512 == 0
                end, was_free = end + block.size, block.free
                if block.free:
                    in_pool.append((block.size, block.address))
                    free += block.size
                else:
                    waiting_or_used += block.size
            stretches.append((head.address, end))
        assert sorted(in_pool) == [(size, address) for size, address, _ in pool.free_blocks]
    stretches.sort()
    assert all(end <= start for (_, end), (start, _) in pairwise(stretches))
    assert sum(end - start for start, end in stretches) == allocator.reserved == free + waiting_or_used
    assert waiting_or_used == allocator.allocated + sum(block.size for block in allocator.waiting)
    assert allocator.allocated == sum(block.size for block in allocator.live.values() if block is not None)


@pytest.mark.parametrize("seed", range(4))
def test_blocks_always_tile_their_segments(seed: int) -> None:
    for allocator in (
        PlainSegments(rising_addresses()),
        PlainSegments(falling_addresses()),
        PlainSegments(shuffled_addresses(seed)),
        ExpandableSegments(),
    ):
        for event in random_log(seed, 150):
            match event:
                case Allocate(key, size, stream):
                    allocator.allocate(key, size, stream)
                case Free(key):
                    allocator.free(key)
                case UsedBy(key, stream):
                    allocator.use(key, stream)
                case Synchronize():
                    allocator.synchronize()
            tiled(allocator)


def test_a_key_is_used_once_at_a_time() -> None:
    with pytest.raises(AssertionError, match="storage 7 is not freed yet"):
        replay([Allocate(7, 512, "compute"), Allocate(7, 512, "compute")])
    replay([Allocate(7, 512, "compute"), Free(7), Allocate(7, 512, "compute")])


def test_a_long_log_is_replayed_quickly() -> None:
    """Six replays of 36,000 events and two to their peaks took 0.7 s; each event costs the same in a longer log."""
    events = random_log(0, 18_000)
    assert len(events) > 36_000
    start = time.perf_counter()
    replay(events)
    assert time.perf_counter() - start < 10
