"""Plain segments, torch's default: each is one cudaMalloc, as large as its first block needs, and never grows."""

from bisect import bisect_left

from counting.allocator.addresses import PlaceOfSegment
from counting.allocator.blocks import (
    LARGE_SEGMENT_BYTES,
    MIN_BLOCK_BYTES,
    MIN_LARGE_BYTES,
    ROUND_LARGE_BYTES,
    SMALL_BYTES,
    SMALL_SEGMENT_BYTES,
    Block,
    CachingAllocator,
    Pool,
)


def segment_bytes(size: int) -> int:
    """The bytes of a new segment for a block of `size` bytes (`get_allocation_size`).

    2 MiB for a small block, 20 MiB for one below 10 MiB, else the next multiple of 2 MiB.
    """
    if size <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if size < MIN_LARGE_BYTES:
        return LARGE_SEGMENT_BYTES
    return -(-size // ROUND_LARGE_BYTES) * ROUND_LARGE_BYTES


class PlainSegments(CachingAllocator):
    """`place` gives the address of each new segment, by its size: the driver's part.

    Addresses decide which of several free blocks of equal size is taken: the lowest (`BlockComparatorSize`).
    """

    def __init__(self, place: PlaceOfSegment) -> None:
        super().__init__()
        self._place = place

    def new_pool(self, stream: str, *, small: bool) -> Pool:
        """A large block keeps up to 1 MiB that it does not need; a small one less than 512 bytes (`should_split`)."""
        return Pool(stream, small=small, least_remainder=MIN_BLOCK_BYTES if small else SMALL_BYTES + 1)

    def find(self, pool: Pool, size: int) -> Block | None:
        """The smallest block that is large enough (`get_free_block`)."""
        index = bisect_left(pool.free_blocks, (size,))
        return pool.take(index) if index < len(pool.free_blocks) else None

    def reserve(self, pool: Pool, size: int) -> Block:
        """A new segment, all of it one block (`alloc_block`)."""
        reserved = segment_bytes(size)
        block = Block(pool, self._place(reserved), reserved)
        pool.heads.append(block)
        self.obtain(pool, block.address, reserved)
        return block

    def releasable(self, block: Block) -> int:
        """All of a block that is a whole segment, else nothing (`release_blocks`)."""
        return block.size if block.is_whole_segment else 0
