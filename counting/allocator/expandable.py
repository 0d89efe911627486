"""Expandable segments (`expandable_segments:True`): one segment a pool, which grows page by page. Torch-free.

Torch reserves addresses for more than the whole device, and maps pages of memory to them from the lowest on, 2 MiB each
for small blocks and 20 MiB for large ones (Note [Expandable Segments]). As nothing is unmapped before an allocation
fails, what is mapped has no gaps.
"""

from bisect import bisect_left

from counting.allocator.blocks import (
    LARGE_SEGMENT_BYTES,
    MIN_BLOCK_BYTES,
    SMALL_SEGMENT_BYTES,
    Block,
    CachingAllocator,
    Pool,
)

ADDRESSES_OF_A_SEGMENT = LARGE_SEGMENT_BYTES << 16  # more than a device has; a multiple of both kinds of pages


def page_bytes(pool: Pool) -> int:
    """The bytes that the driver maps at a time (`find_expandable_block`)."""
    return SMALL_SEGMENT_BYTES if pool.small else LARGE_SEGMENT_BYTES


class ExpandableSegments(CachingAllocator):
    """One growing segment a pool."""

    def __init__(self) -> None:
        super().__init__()
        self._unmapped: dict[Pool, Block] = {}  # the addresses behind what is mapped: a block of 0 bytes

    def new_pool(self, stream: str, *, small: bool) -> Pool:
        """No block, large or small, keeps 512 bytes that it does not need (`should_split`)."""
        return Pool(stream, small=small, least_remainder=MIN_BLOCK_BYTES)

    def find(self, pool: Pool, size: int) -> Block | None:
        """The smallest block that is large enough, but the last of the segment only if no other is (`get_free_block`).

        The last block could still grow: it counts with all that it could grow to.
        """
        index = bisect_left(pool.free_blocks, (size,))
        if index == len(pool.free_blocks):
            return None
        unmapped = self._unmapped[pool]
        if pool.free_blocks[index][2].next is unmapped and index + 1 < len(pool.free_blocks):
            index += 1
        return pool.take(index)

    def reserve(self, pool: Pool, size: int) -> Block:
        """The last block if it is free, or a new one behind it, with as many new pages as it lacks.

        `try_allocate_expandable_block`, `find_expandable_block`, `map_block`.
        """
        unmapped = self._unmapped.get(pool)
        if unmapped is None:
            start = (1 + len(self._unmapped)) * ADDRESSES_OF_A_SEGMENT
            unmapped = self._unmapped[pool] = Block(pool, start, 0)
        last, address = unmapped.previous, unmapped.address
        page = page_bytes(pool)
        if last is not None and last.free:
            block = last
            pool.remove(block)
        else:
            block = Block(pool, address, 0)
            block.previous, block.next = last, unmapped
            unmapped.previous = block
            if last is None:
                pool.heads.append(block)
            else:
                last.next = block
        mapped = -(-(size - block.size) // page) * page
        block.size += mapped
        unmapped.address += mapped
        self.obtain(pool, address, mapped)
        return block

    def releasable(self, block: Block) -> int:
        """The whole pages within a free block (`ExpandableSegment::unmap`)."""
        page = page_bytes(block.pool)
        first, end = -(-block.address // page), (block.address + block.size) // page
        return max(0, end - first) * page
