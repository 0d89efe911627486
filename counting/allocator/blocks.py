"""Blocks, pools of free ones, and the rules that both kinds of segments share. Torch-free.

The rules are those of `DeviceCachingAllocator` in torch's c10/cuda/CUDACachingAllocator.cpp with its default options;
the names of its functions and constants stand beside them. Without a limit no block is too large to be split
(`max_split_size`), and nothing is given back to the driver, which torch does only where an allocation fails.
"""

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections.abc import Iterator

MIB = 1 << 20
MIN_BLOCK_BYTES = 512  # kMinBlockSize
SMALL_BYTES = MIB  # kSmallSize: the largest block of a small pool
SMALL_SEGMENT_BYTES = 2 * MIB  # kSmallBuffer
LARGE_SEGMENT_BYTES = 20 * MIB  # kLargeBuffer; today large_segment_size(), by default the same
MIN_LARGE_BYTES = 10 * MIB  # kMinLargeAlloc: from here on, a segment has the size of its first block
ROUND_LARGE_BYTES = 2 * MIB  # kRoundLarge


def block_bytes(requested: int) -> int:
    """The bytes of the block for a storage of `requested` bytes: the next multiple of 512 (`round_size`)."""
    return -(-requested // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES


class Block:
    """A stretch of a segment: in use, waiting for another stream, or free in its pool."""

    __slots__ = ("address", "free", "next", "pool", "previous", "requested", "size", "used_by")

    def __init__(self, pool: "Pool", address: int, size: int) -> None:
        self.pool, self.address, self.size = pool, address, size
        self.previous: Block | None = None  # its neighbours within the segment
        self.next: Block | None = None
        self.free = False
        self.requested = 0
        self.used_by = False  # by another stream than that of its pool

    @property
    def is_whole_segment(self) -> bool:
        """Whether it has no neighbour: torch's block that is not split (`is_split`)."""
        return self.previous is None and self.next is None


class Pool:
    """The segments of one stream for small blocks, or for large ones, and those of their blocks that are free.

    Torch has one pool for small and one for large blocks, in which the stream is the first key of the order
    (`BlockComparatorSize`, `get_pool`). A search that meets a block of another stream fails (`get_free_block`), so that
    each stream has a pool of its own.
    """

    __slots__ = ("free_blocks", "heads", "least_remainder", "reserved", "small", "stream")

    def __init__(self, stream: str, *, small: bool, least_remainder: int) -> None:
        self.stream, self.small, self.least_remainder = stream, small, least_remainder
        self.free_blocks: list[tuple[int, int, Block]] = []  # size, address: the smallest first, then the lowest
        self.reserved = 0
        self.heads: list[Block] = []  # the first block of each segment

    def insert(self, block: Block) -> None:
        """Put a block among the free ones."""
        block.free = True
        insort(self.free_blocks, (block.size, block.address, block))

    def remove(self, block: Block) -> None:
        """Take this block from among the free ones."""
        self.take(bisect_left(self.free_blocks, (block.size, block.address)))

    def take(self, index: int) -> Block:
        """Take the free block at `index` of the order."""
        _, _, block = self.free_blocks.pop(index)
        block.free = False
        return block


class CachingAllocator(ABC):
    """What is in use and what is reserved, as storages come and go; `current` figures are those of the moment."""

    def __init__(self) -> None:
        self.pools: dict[tuple[str, bool], Pool] = {}
        self.live: dict[int, Block | None] = {}  # None for a storage without bytes
        self.waiting: list[Block] = []  # freed, but another stream may still use them
        self.allocated = self.requested = self.reserved = 0
        self.driver_calls: list[tuple[Pool, int, int]] = []  # cudaMalloc or cuMemMap: the pool, an address, bytes

    @abstractmethod
    def new_pool(self, stream: str, *, small: bool) -> Pool:
        """A pool without segments."""

    @abstractmethod
    def find(self, pool: Pool, size: int) -> Block | None:
        """The free block that serves best, taken from the pool; None if none is large enough."""

    @abstractmethod
    def reserve(self, pool: Pool, size: int) -> Block:
        """A block of at least `size` bytes, with new memory from the driver."""

    @abstractmethod
    def releasable(self, block: Block) -> int:
        """The bytes of a free block that could go back to the driver: what is left are fragments."""

    def allocate(self, key: int, requested: int, stream: str) -> Block | None:
        """Find a block for a storage, or reserve one, and split off what it does not need (`malloc`).

        A storage without bytes has none (`NativeCachingAllocator::allocate`).
        """
        assert key not in self.live, f"storage {key} is not freed yet"
        if requested == 0:
            self.live[key] = None
            return None
        size = block_bytes(requested)
        small = size <= SMALL_BYTES  # get_pool
        pool = self.pools.get((stream, small))
        if pool is None:
            pool = self.pools[stream, small] = self.new_pool(stream, small=small)
        block = self.find(pool, size) or self.reserve(pool, size)
        if block.size - size >= pool.least_remainder:
            _split(block, size)
        block.requested = requested
        self.live[key] = block
        self.requested += requested
        self.allocated += block.size
        return block

    def free(self, key: int) -> Block | None:
        """Free the block of a storage, unless another stream uses it: then it waits (`free`, `insert_events`)."""
        block = self.live.pop(key)
        if block is None:
            return None
        self.requested -= block.requested
        self.allocated -= block.size
        if block.used_by:
            self.waiting.append(block)
        else:
            _merge(block)
        return block

    def use(self, key: int, stream: str) -> None:
        """Another stream uses a storage; its own is no other (`recordStream`)."""
        block = self.live[key]
        if block is not None and block.pool.stream != stream:
            block.used_by = True

    def synchronize(self) -> list[Block]:
        """All streams are done: the blocks that waited are free (`process_events`). They are as they were before."""
        done, self.waiting = self.waiting, []
        for block in done:
            block.used_by = False
            _merge(block)
        return done

    def obtain(self, pool: Pool, address: int, size: int) -> None:
        """Note memory that the driver gave."""
        pool.reserved += size
        self.reserved += size
        self.driver_calls.append((pool, address, size))


def blocks_from(head: Block) -> Iterator[Block]:
    """The blocks of a segment, by address, up to that of 0 bytes behind an expandable one."""
    block: Block | None = head
    while block is not None and block.size:
        yield block
        block = block.next


def _split(block: Block, size: int) -> None:
    """Give the block `size` bytes, at its beginning, and free the rest (`alloc_found_block`)."""
    rest = Block(block.pool, block.address + size, block.size - size)
    block.size = size
    rest.previous, rest.next = block, block.next
    if rest.next is not None:
        rest.next.previous = rest
    block.next = rest
    block.pool.insert(rest)


def _merge(block: Block) -> None:
    """Free a block, as one with the free blocks beside it (`free_block`, `try_merge_blocks`).

    A block that is in use or waits is not merged. What results is the lower block, so that the head of a segment stays.
    """
    pool = block.pool
    after = block.next
    if after is not None and after.free:
        pool.remove(after)
        _absorb(block, after)
    before = block.previous
    if before is not None and before.free:
        pool.remove(before)
        _absorb(before, block)
        block = before
    pool.insert(block)


def _absorb(block: Block, after: Block) -> None:
    block.size += after.size
    block.next = after.next
    if after.next is not None:
        after.next.previous = block
