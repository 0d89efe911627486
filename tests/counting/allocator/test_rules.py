"""Each rule of torch's c10/cuda/CUDACachingAllocator.cpp, whose function or constant stands above its test."""

import pytest

from counting.allocator.addresses import falling_addresses, rising_addresses
from counting.allocator.blocks import Block, CachingAllocator, block_bytes, blocks_from
from counting.allocator.expandable import ExpandableSegments
from counting.allocator.plain import PlainSegments, segment_bytes

KIB, MIB = 1 << 10, 1 << 20


def plain() -> PlainSegments:
    return PlainSegments(rising_addresses())


def used(allocator: CachingAllocator, key: int, size: int, stream: str = "compute") -> Block:
    block = allocator.allocate(key, size, stream)
    assert block is not None
    return block


def sizes(allocator: CachingAllocator, stream: str = "compute", *, small: bool = False) -> list[list[int]]:
    """The blocks of each segment of a pool, by address; free ones are negative."""
    heads = allocator.pools[stream, small].heads
    return [[-block.size if block.free else block.size for block in blocks_from(head)] for head in heads]


# round_size, kMinBlockSize
@pytest.mark.parametrize(
    ("requested", "expected"), [(1, 512), (511, 512), (512, 512), (513, 1024), (MIB - 1, MIB), (10 * MIB + 1, 10486272)]
)
def test_blocks_are_multiples_of_512_bytes(requested: int, expected: int) -> None:
    assert block_bytes(requested) == expected


# get_allocation_size: kSmallSize, kSmallBuffer, kMinLargeAlloc, kLargeBuffer, kRoundLarge
@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (512, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 512, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 512, 12 * MIB),
        (4003 * MIB, 4004 * MIB),
    ],
)
def test_a_segment_is_as_large_as_its_first_block_needs(size: int, expected: int) -> None:
    assert segment_bytes(size) == expected


# NativeCachingAllocator::allocate: no malloc where size is 0
def test_a_storage_without_bytes_has_no_block() -> None:
    allocator = plain()
    assert allocator.allocate(1, 0, "compute") is None
    assert allocator.free(1) is None
    assert (allocator.allocated, allocator.reserved, allocator.pools) == (0, 0, {})


# get_pool: the rounded size decides
def test_up_to_a_mebibyte_is_small() -> None:
    allocator = plain()
    assert used(allocator, 1, MIB).pool.small
    assert used(allocator, 2, MIB - 511).pool.small
    assert not used(allocator, 3, MIB + 1).pool.small


# BlockComparatorSize, get_free_block: the stream is the first key, and another stream's block ends the search
def test_a_free_block_serves_its_own_stream_alone() -> None:
    allocator = plain()
    used(allocator, 1, 40 * MIB, "gather")
    allocator.free(1)
    used(allocator, 2, 40 * MIB, "compute")
    assert allocator.reserved == 80 * MIB
    used(allocator, 3, 40 * MIB, "gather")
    assert allocator.reserved == 80 * MIB


# get_pool: small blocks never come out of a large pool's free ones
def test_small_and_large_blocks_have_pools_of_their_own() -> None:
    allocator = plain()
    used(allocator, 1, 40 * MIB)
    allocator.free(1)
    used(allocator, 2, 512)
    assert allocator.reserved == 42 * MIB


# get_free_block: lower_bound in the order of sizes
def test_the_smallest_block_that_is_large_enough_is_taken() -> None:
    allocator = plain()
    blocks = {mebibytes: used(allocator, mebibytes, mebibytes * MIB) for mebibytes in (60, 30, 50)}
    for mebibytes in blocks:
        allocator.free(mebibytes)
    assert used(allocator, 1, 40 * MIB) is blocks[50]


# BlockComparatorSize: of equal sizes the lowest address
@pytest.mark.parametrize(("place", "expected"), [(rising_addresses, 0), (falling_addresses, 2)])
def test_of_equal_blocks_the_lowest_is_taken(place: type, expected: int) -> None:
    allocator = PlainSegments(place())
    blocks = [used(allocator, key, 30 * MIB) for key in range(3)]
    for key in range(3):
        allocator.free(key)
    assert used(allocator, 9, 30 * MIB) is blocks[expected]


# should_split: a large block is split if more than kSmallSize remains
@pytest.mark.parametrize(
    ("requested", "expected"),
    [(39 * MIB, [40 * MIB]), (39 * MIB - 511, [40 * MIB]), (39 * MIB - 512, [39 * MIB - 512, -(MIB + 512)])],
)
def test_a_large_block_is_split_if_more_than_a_mebibyte_remains(requested: int, expected: list[int]) -> None:
    allocator = plain()
    used(allocator, 1, 40 * MIB)
    allocator.free(1)
    used(allocator, 2, requested)
    assert sizes(allocator) == [expected]


# alloc_found_block: allocated_bytes grows by the block's size, split or not; requested_bytes by what was asked for
def test_what_a_block_does_not_need_counts_as_allocated() -> None:
    allocator = plain()
    used(allocator, 1, 39 * MIB + 1)
    assert (allocator.requested, allocator.allocated, allocator.reserved) == (39 * MIB + 1, 40 * MIB, 40 * MIB)


# should_split: a small block is split if at least kMinBlockSize remains
def test_a_small_block_is_split_if_512_bytes_remain() -> None:
    allocator = plain()
    used(allocator, 1, MIB)
    used(allocator, 2, MIB - 512)
    assert sizes(allocator, small=True) == [[MIB, MIB - 512, -512]]


# alloc_found_block: the block has the lower part, what remains the upper one
def test_the_lower_part_of_a_block_is_taken() -> None:
    allocator = plain()
    first = used(allocator, 1, 8 * MIB)
    second = used(allocator, 2, 4 * MIB)
    assert second.address == first.address + 8 * MIB
    assert sizes(allocator) == [[8 * MIB, 4 * MIB, -8 * MIB]]


# free_block, try_merge_blocks: on both sides, but never across segments
def test_free_neighbours_become_one_block() -> None:
    allocator = plain()
    for key in (1, 2, 3, 4):
        used(allocator, key, 5 * MIB)
    used(allocator, 5, 20 * MIB)
    allocator.free(1)
    allocator.free(3)
    assert sizes(allocator) == [[-5 * MIB, 5 * MIB, -5 * MIB, 5 * MIB], [20 * MIB]]
    allocator.free(2)
    assert sizes(allocator) == [[-15 * MIB, 5 * MIB], [20 * MIB]]
    allocator.free(4)
    allocator.free(5)
    assert sizes(allocator) == [[-20 * MIB], [-20 * MIB]]
    used(allocator, 6, 40 * MIB)
    assert allocator.reserved == 80 * MIB


# recordStream, free, insert_events, process_events
def test_a_block_of_another_stream_waits_for_it() -> None:
    allocator = plain()
    used(allocator, 1, 40 * MIB)
    allocator.use(1, "reduce")
    allocator.free(1)
    assert (allocator.allocated, [block.size for block in allocator.waiting]) == (0, [40 * MIB])
    used(allocator, 2, 40 * MIB)
    assert allocator.reserved == 80 * MIB
    allocator.synchronize()
    used(allocator, 3, 40 * MIB)
    assert (allocator.reserved, allocator.waiting) == (80 * MIB, [])


# try_merge_blocks: not with a block that has outstanding events
def test_a_waiting_block_is_not_merged() -> None:
    allocator = plain()
    for key in (1, 2):
        used(allocator, key, 5 * MIB)
    allocator.use(1, "reduce")
    allocator.free(1)
    allocator.free(2)
    assert sizes(allocator) == [[5 * MIB, -15 * MIB]]
    allocator.synchronize()
    assert sizes(allocator) == [[-20 * MIB]]


# recordStream: "ignore uses on the allocation stream"
def test_a_block_does_not_wait_for_its_own_stream() -> None:
    allocator = plain()
    used(allocator, 1, 40 * MIB)
    allocator.use(1, "compute")
    allocator.free(1)
    used(allocator, 2, 40 * MIB)
    assert allocator.reserved == 40 * MIB


# free_block: once its events are done, a block is as new
def test_a_block_waits_once() -> None:
    allocator = plain()
    used(allocator, 1, 40 * MIB)
    allocator.use(1, "reduce")
    allocator.free(1)
    allocator.synchronize()
    used(allocator, 2, 40 * MIB)
    allocator.free(2)
    used(allocator, 3, 40 * MIB)
    assert allocator.reserved == 40 * MIB


# ExpandableSegment::map, map_block: whole pages of kLargeBuffer or kSmallBuffer
@pytest.mark.parametrize(
    ("requested", "expected"),
    [(512, 2 * MIB), (MIB, 2 * MIB), (MIB + 1, 20 * MIB), (20 * MIB + 1, 40 * MIB), (33 * MIB, 40 * MIB)],
)
def test_an_expandable_segment_grows_by_pages(requested: int, expected: int) -> None:
    allocator = ExpandableSegments()
    used(allocator, 1, requested)
    assert allocator.reserved == expected


# try_allocate_expandable_block: the free block before the unmapped addresses is part of the new one
def test_the_free_end_of_a_segment_grows() -> None:
    allocator = ExpandableSegments()
    used(allocator, 1, 15 * MIB)
    grown = used(allocator, 2, 30 * MIB)
    assert sizes(allocator) == [[15 * MIB, 30 * MIB, -15 * MIB]]
    assert allocator.reserved == 60 * MIB
    allocator.free(2)
    assert used(allocator, 3, 100 * MIB).address == grown.address
    assert allocator.reserved == 120 * MIB


# find_expandable_block: without a free block there, right behind the last one
def test_a_segment_whose_end_is_in_use_grows_behind_it() -> None:
    allocator = ExpandableSegments()
    first = used(allocator, 1, 20 * MIB)
    assert used(allocator, 2, 20 * MIB).address == first.address + 20 * MIB
    assert sizes(allocator) == [[20 * MIB, 20 * MIB]]


# should_split: with expandable segments a large block is split as a small one
def test_a_large_block_of_an_expandable_segment_keeps_nothing() -> None:
    allocator = ExpandableSegments()
    used(allocator, 1, 40 * MIB - 512)
    assert sizes(allocator) == [[40 * MIB - 512, -512]]


# get_free_block, expandable_size: the block that could grow comes after all others that are large enough
def test_the_end_of_a_segment_is_the_last_choice() -> None:
    allocator = ExpandableSegments()
    inner = used(allocator, 1, 30 * MIB)
    used(allocator, 2, 4 * MIB)
    last = used(allocator, 3, 6 * MIB)
    allocator.free(1)
    allocator.free(3)
    assert (last.size, last.free) == (6 * MIB, True)
    assert used(allocator, 4, 5 * MIB) is inner
    assert used(allocator, 5, 26 * MIB) is last


# find_expandable_block: one segment a stream and kind of pool
def test_each_pool_has_its_own_expandable_segment() -> None:
    allocator = ExpandableSegments()
    used(allocator, 1, 30 * MIB, "compute")
    used(allocator, 2, 30 * MIB, "gather")
    used(allocator, 3, 512, "gather")
    used(allocator, 4, 30 * MIB, "compute")
    heads = {key: len(pool.heads) for key, pool in allocator.pools.items()}
    assert heads == {("compute", False): 1, ("gather", False): 1, ("gather", True): 1}
    assert allocator.reserved == (60 + 40 + 2) * MIB


# ExpandableSegment::unmap: only whole pages within a free block; release_blocks: only whole plain segments
def test_what_could_go_back_to_the_driver() -> None:
    allocator = ExpandableSegments()
    used(allocator, 1, 10 * MIB)
    used(allocator, 2, 45 * MIB)
    used(allocator, 3, 5 * MIB)
    allocator.free(2)
    assert sizes(allocator) == [[10 * MIB, -45 * MIB, 5 * MIB]]
    free = allocator.pools["compute", False].free_blocks
    assert [allocator.releasable(block) for _, _, block in free] == [20 * MIB]

    segments = plain()
    used(segments, 1, 40 * MIB)
    used(segments, 2, 5 * MIB)
    segments.free(1)
    free = segments.pools["compute", False].free_blocks
    assert [(block.size, segments.releasable(block)) for _, _, block in free] == [(15 * MIB, 0), (40 * MIB, 40 * MIB)]
